"""The metrics of one process: its counters, its gauges, and the page that shows both."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from policies import Options, Policy, Situation
from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from streams.metrics import registry as m
from streams.metrics.gauges import Gauges, Readings
from streams.metrics.instruments import Instruments, Names
from streams.metrics.projection import Fold, ProfileOf, no_profile

PREMIUM = "premium_gpu"
# Without the charset of the library's own constants, which the web server adds.
TEXT = "text/plain; version=0.0.4"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def page_of(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """Return content type and text of a registry, in the format that a reader accepts.

    Args:
        registry: of a process.
        accept: the header of the request.
    """
    if "application/openmetrics-text" in accept:
        text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
        return OPENMETRICS, text
    return TEXT, generate_latest(registry)


class Metrics:
    """Counts the transactions that it observes, and shows them with the gauges.

    Args:
        options: tells which pools are premium GPUs.
        policy: names the classes, and the tenants that have a name of their own first.
        tenants_max: tenants by name; those beyond it are ``other`` together.
        profile_of: the request of an effect, where the stage knows it and its evidence doesn't.
    """

    def __init__(
        self,
        options: Options,
        policy: Policy,
        *,
        tenants_max: int,
        profile_of: ProfileOf = no_profile,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._instruments = Instruments(self.registry)
        self._logs: list[tuple[str, KafkaLog]] = []
        self._lag: dict[tuple[str, str], int] = {}
        self.gauges = Gauges()
        self.gauges.read_from(self._lags)
        self.registry.register(self.gauges)
        self.observer = Fold(
            self._instruments,
            tasks=policy.classes,
            tenants=Names(tuple(sorted(policy.tenants)), tenants_max),
            premium_pools=_premium(options),
            providers=_providers(options),
            profile_of=profile_of,
        )

    def change(self, situation: Situation) -> None:
        """Count by another policy and fleet from now on; tenants keep the names they have."""
        options = situation.options
        self.observer.change(situation.policy.classes, _premium(options), _providers(options))

    def timed(self, group: str, partition: Partition, seconds: float) -> None:
        """Count a transaction."""
        self._instruments.observe(m.TRANSACTION, seconds, group, partition.topic)

    def watch(self, group: str, log: KafkaLog) -> None:
        """Report the lag of this group member from now on."""
        self._logs.append((group, log))

    def logs(self) -> Iterable[KafkaLog]:
        """Return the members whose lag is reported."""
        return [log for _, log in self._logs]

    async def sample(self) -> None:
        """Sample the lag of the members; the page shows the last sample."""
        lag: dict[tuple[str, str], int] = {}
        for group, log in self._logs:
            for partition, records in (await log.lag()).items():
                key = (group, partition.topic)
                lag[key] = lag.get(key, 0) + records
        self._lag = lag

    def page(self, accept: str) -> tuple[str, bytes]:
        """Return content type and text, with exemplars if the reader takes OpenMetrics.

        Args:
            accept: the header of the request.
        """
        return page_of(self.registry, accept)

    def _lags(self) -> Readings:
        found: Iterable[tuple[tuple[str, str], int]] = self._lag.items()
        for key, records in found:
            yield m.LAG, key, records


def _premium(options: Options) -> list[str]:
    return [name for name, each in options.by_pool.items() if each[0].kind == PREMIUM]


def _providers(options: Options) -> dict[str, str]:
    return {name: each[0].provider for name, each in options.by_pool.items()}
