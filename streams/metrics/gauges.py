"""Gauges: current values, read from their source at each scrape."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from zlib import crc32

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from policies import FleetView, Policy
from policies.quality.sampling import DAY_S
from policies.quality.verdict_state import KnownQuality
from streams.batcher.stage import Batcher
from streams.engine.clock import Clock
from streams.engine.log import Partition
from streams.kafka.follower import TopicFollower
from streams.metrics import quality as q
from streams.metrics import registry as m
from streams.metrics.instruments import Names
from streams.metrics.metric import Metric
from streams.tracing.telemetry import Telemetry

# Limit of groups by name; names contain the constraints, so clients could make many.
GROUPS_MAX = 20
GROUP_CHARACTERS_MAX = 120

Readings = Iterable[tuple[Metric, tuple[str, ...], float]]
"""A metric of the catalogue, the values of its labels, and the value."""


Family = GaugeMetricFamily | CounterMetricFamily
_FAMILIES: dict[str, type[Family]] = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


class Gauges(Collector):
    """Reads its sources on demand, all on one thread: that of the event loop."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Readings]] = []

    def read_from(self, source: Callable[[], Readings]) -> None:
        """Add a source."""
        self._sources.append(source)

    def collect(self) -> Iterator[Family]:
        """Yield the sources' values."""
        families: dict[Metric, Family] = {}
        for source in self._sources:
            for metric, labels, value in source():
                family = families.get(metric)
                if family is None:
                    make = _FAMILIES[metric.kind]
                    family = families[metric] = make(
                        metric.family, metric.text, labels=metric.labels
                    )
                family.add_metric(labels, value)
        yield from families.values()


def broken_counts(group: str, broken: Callable[[], Iterable[Partition]]) -> Callable[[], Readings]:
    """Return a source for the number of a member's partitions whose log is broken, by topic."""

    def readings() -> Readings:
        for topic, count in Counter(partition.topic for partition in broken()).items():
            yield m.BROKEN, (group, topic), count

    return readings


def follower_counts(follower: TopicFollower) -> Callable[[], Readings]:
    """Return a source for the number of records that a follower has skipped."""

    def read() -> Readings:
        for topic, count in follower.set_aside.items():
            yield m.PASSED_OVER, (topic,), count

    return read


def hold_gauges(
    batcher: Batcher, policy: Callable[[], Policy], clock: Clock
) -> Callable[[], Readings]:
    """Return a source for the hold on a router's partitions."""

    def read() -> Readings:
        tasks: Counter[str] = Counter(dict.fromkeys(policy().classes, 0))
        oldest: dict[str, float] = {}
        for windows in batcher.windows():
            tasks.update(windows.tasks())
            for group, held_at in windows.oldest().items():
                oldest[group] = min(held_at, oldest.get(group, held_at))
        for task, count in tasks.items():
            yield m.HOLD_REQUESTS, (task,), count
        yield m.HOLD_LIMIT, (), batcher.held_records_max
        yield m.HOLD_PAYLOADS, (), batcher.room.bytes_used
        yield m.HOLD_PAYLOADS_LIMIT, (), batcher.room.bytes_max
        sizes = Counter(batcher.sizes()).most_common()
        now = clock.now()
        for group, size in sizes[:GROUPS_MAX]:
            name = (_shortened(group),)
            yield m.GROUP_REQUESTS, name, size
            yield m.GROUP_AGE, name, now - oldest[group]
        rest = [group for group, _ in sizes[GROUPS_MAX:]]
        if rest:
            yield m.GROUP_REQUESTS, (Names.OTHER,), sum(size for _, size in sizes[GROUPS_MAX:])
            yield m.GROUP_AGE, (Names.OTHER,), now - min(oldest[group] for group in rest)

    return read


def _shortened(group: str) -> str:
    """Return a group's name, or its beginning and a digest: two series of one name are an error."""
    if len(group) <= GROUP_CHARACTERS_MAX:
        return group
    return f"{group[:GROUP_CHARACTERS_MAX]}~{crc32(group.encode()):08x}"


def quality_gauges(known: KnownQuality, clock: Clock) -> Callable[[], Readings]:
    """Return a source for what comparisons say of variants; every router tells the same."""

    def read() -> Readings:
        for state in known.variants.values():
            reference = state.reference
            if state.reference_pool is not None:
                reference = f"{state.reference_pool}/{reference}"
            where = (state.pool, state.variant, reference)
            yield q.DRIFTED, where, float(state.verdict == "drifted")
            yield q.DIFFERENCE, where, state.recent
            yield q.COMPARED, (*where, "compared"), state.samples
            yield q.COMPARED, (*where, "uncompared"), state.uncompared
        today = int(clock.now() // DAY_S)
        for task, spent in known.spent.items():
            yield q.WATCH_COST, (task,), spent.usd if spent.day == today else 0.0

    return read


def misfit_counts(view: Callable[[], FleetView]) -> Callable[[], Readings]:
    """Return a source for the heartbeats that were refused, by pool and reason."""

    def read() -> Readings:
        for labels, count in view().refused.items():
            yield m.HEARTBEATS_REFUSED, labels, count

    return read


def span_gauges(telemetry: Telemetry) -> Callable[[], Readings]:
    """Return a source for dropped spans and traces that were not begun."""

    def read() -> Readings:
        yield m.DROPPED_SPANS, (), telemetry.dropped_spans
        yield m.LEFT_OUT_TRACES, (), telemetry.left_out_traces

    return read


def target_gauges(policy: Callable[[], Policy]) -> Callable[[], Readings]:
    """Return a source for the target share of requests that meet their SLO, by class."""

    def read() -> Readings:
        for task, wanted in policy().classes.items():
            yield m.SLO_TARGET, (task,), wanted.objective or wanted.target_chance

    return read
