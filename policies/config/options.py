"""Options: each way the fleet can serve a model, compiled once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.config.fleet import Fleet, Pool
from policies.config.places import of_place
from policies.config.prices import TokenRates
from policies.config.quality import QUALITY
from policies.config.rooflines import roofline_of
from policies.config.schema import digest_of
from policies.config.series import Series
from policies.config.tariffs import WATTS_PER_KW, Tariff
from policies.hardware.roofline import Roofline
from topics.records.decision_tables import Numbering
from topics.records.money import NANO

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Option:
    """One model variant in one pool.

    ``usd_per_s`` is the price of one replica's time; where work is paid by tokens it is 0, and
    ``rates`` are the prices. ``latency_s`` is what a first token takes beside the device, ``error``
    the standard deviation of ln(actual / predicted) latency that the device's constants come with,
    0 if they say nothing. ``is_assumed``: no servers on such a device were measured. ``busy_w`` and
    ``idle_w`` are watts of a replica with its share of the host, None where unknown; limits are in
    kW, of the pool and of its site. ``quality`` is the share of the published weights' scores that
    the variant keeps.
    """

    pool: str
    device: str
    kind: str
    region: str
    labels: Mapping[str, str]
    lanes: frozenset[str]
    model: str
    variant: str
    precision: str
    operations: frozenset[str]
    context_tokens: int
    roofline: Roofline
    replicas: int
    max_batch: int
    kv_capacity_tokens: int
    usd_per_s: float
    time_scale: float
    failure_rate: float
    latency_s: float = 0.0
    error: float = 0.0
    is_assumed: bool = False
    busy_w: float | None = None
    idle_w: float | None = None
    site: str | None = None
    pool_kw_max: float | None = None
    site_kw_max: float | None = None
    quality: float = 1.0
    rates: TokenRates | None = None
    tariff: Tariff | None = None
    """What of its price and emissions moves with time; None: nothing is declared that does."""
    interruptions_per_s: float = 0.0
    """How often a replica is taken away, and ``notice_s`` how long before that it is said."""
    notice_s: float = 0.0
    gathers: bool = False
    """Whether its pool chooses the replica as `policies.hardware.replica` does; else a server
    spreads what it gets."""
    keeps_tpot: bool = False
    """Whether its replicas compute no more of prompts at once than the TPOT of what decodes beside
    them allows (`policies.hardware.chunks`); else whole chunks."""
    migrates: bool = False
    """Whether replies go on at other replicas of its pool (`policies.hardware.migration`)."""
    provider: str = "shunter"
    """Who computes, as the GenAI conventions name it (``gen_ai.provider.name``)."""

    @property
    def is_power_limited(self) -> bool:
        """True if its pool or site bounds what it may draw."""
        return self.pool_kw_max is not None or self.site_kw_max is not None

    @property
    def moves(self) -> bool:
        """True if something of it is declared by time: price, emissions, interruptions."""
        return self.tariff is not None or self.interruptions_per_s > 0

    def cost_usd(
        self, device_s: float, input_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> float:
        """Return the cost of an answer in US dollars, by its tokens or by its device time."""
        if self.rates is None:
            return device_s * self.usd_per_s
        return self.rates.nano_usd(input_tokens, output_tokens, cached_tokens) / NANO

    def cut_cost_usd(self, device_s: float, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of work that ended without its answer.

        What is paid by tokens costs nothing before the first one came.
        """
        if self.rates is not None and not output_tokens:
            return 0.0
        return self.cost_usd(device_s, input_tokens, output_tokens)


class ModelOptions:
    """The options that serve one model, and what each decision on a request of it asks of them.

    Attributes:
        options: all of them.
        tokens_max: as many fit each of them, prompt and reply.
        known_refusals: of each option, why it may not serve a request that names no constraint and
            fits, by operation, whether that may wait, and the least quality.
        moves: whether price, emissions or interruptions of any are declared by time.
        kv_bytes_per_token: of the first, as tags tell it.
        numbering: their pools and variants as the tables of evidence, with the bytes of weights.
    """

    __slots__ = (
        "known_refusals",
        "kv_bytes_per_token",
        "moves",
        "numbering",
        "options",
        "tokens_max",
    )

    def __init__(self, options: tuple[Option, ...]) -> None:
        self.options = options
        fitting = [min(option.context_tokens, option.kv_capacity_tokens) for option in options]
        self.tokens_max = min(fitting, default=2**63)
        self.known_refusals: dict[tuple[str, bool, float], Sequence[str | None]] = {}
        self.moves = any(option.moves for option in options)
        self.kv_bytes_per_token = options[0].roofline.kv_bytes_per_token if options else 0.0
        self.numbering = Numbering(
            [(option.pool, option.region) for option in options],
            [(option.variant, option.precision) for option in options],
            {option.variant: round(option.roofline.weights_bytes) for option in options},
        )


@dataclass(frozen=True, slots=True)
class Options:
    """All options of a fleet. ``version`` is the fleet's digest."""

    version: str
    by_model: Mapping[str, tuple[Option, ...]]
    by_pool: Mapping[str, tuple[Option, ...]]
    models: frozenset[str]
    pool_versions: Mapping[str, str] = field(default_factory=dict)
    """By pool, the digest of what the fleet says of its hardware and its models."""
    serving: Mapping[str, ModelOptions] = field(init=False, repr=False, compare=False)
    """``by_model``, with what is the same for all requests of a model."""

    def __post_init__(self) -> None:
        serving = {model: ModelOptions(options) for model, options in self.by_model.items()}
        object.__setattr__(self, "serving", serving)

    def of(self, pool: str, variant: str) -> Option:
        """Return the option of a variant in a pool; raise KeyError if there is none."""
        for option in self.by_pool[pool]:
            if option.variant == variant:
                return option
        raise KeyError(f"{pool} does not serve {variant}")


def same_hardware(some: Iterable[Option], others: Iterable[Option]) -> bool:
    """Return whether these options are of the same devices, variants and limits.

    Price, region, labels, lanes and the declared failure rate may differ: no backend depends on
    them.
    """
    return {_hardware(option) for option in some} == {_hardware(option) for option in others}


def _hardware(option: Option) -> tuple[object, ...]:
    return (
        option.pool,
        option.device,
        option.model,
        option.variant,
        option.precision,
        option.quality,
        option.operations,
        option.context_tokens,
        option.roofline,
        option.replicas,
        option.max_batch,
        option.kv_capacity_tokens,
        option.time_scale,
        option.keeps_tpot,
        option.migrates,
    )


def compile_options(fleet: Fleet) -> Options:
    """Return every option of the fleet."""
    by_pool = {name: _pool_options(fleet, name, pool) for name, pool in fleet.pools.items()}
    by_model: dict[str, list[Option]] = {}
    for options in by_pool.values():
        for option in options:
            by_model.setdefault(option.model, []).append(option)
    return Options(
        version=fleet.version,
        by_model={model: tuple(options) for model, options in by_model.items()},
        by_pool=by_pool,
        models=frozenset(fleet.models),
        pool_versions={name: _pool_version(fleet, pool) for name, pool in fleet.pools.items()},
    )


def _pool_version(fleet: Fleet, pool: Pool) -> str:
    """Return the digest of a pool without its backend, which each host may reach at another URL."""
    return digest_of(
        {
            "pool": pool.model_dump(mode="json", exclude={"backend"}),
            "device": fleet.devices[pool.device].model_dump(mode="json"),
            "models": {
                serve.model: fleet.models[serve.model].model_dump(mode="json")
                for serve in pool.serves
            },
        }
    )


def _pool_options(fleet: Fleet, name: str, pool: Pool) -> tuple[Option, ...]:
    device = fleet.devices[pool.device]
    serving = device.serving
    usd_per_hour = device.usd_per_hour if pool.usd_per_hour is None else pool.usd_per_hour
    rates = None
    if pool.token_price is not None:
        usd_per_hour, rates = 0.0, TokenRates.of(pool.token_price)
    resident_bytes = sum(
        fleet.models[serve.model].weights_bytes(serve.precision) for serve in pool.serves
    )
    options = []
    for serve in pool.serves:
        model = fleet.models[serve.model]
        wide = serve.tensor_parallel
        roofline = roofline_of(device, model, serve.precision, wide, serve.kv_precision)
        options.append(
            Option(
                pool=name,
                device=pool.device,
                kind=device.kind,
                region=pool.region,
                labels=pool.labels,
                lanes=frozenset(pool.lanes),
                model=serve.model,
                variant=serve.variant,
                precision=serve.precision,
                operations=frozenset(model.operations),
                context_tokens=model.context_tokens,
                roofline=roofline,
                replicas=pool.count // wide,
                max_batch=serve.max_batch,
                kv_capacity_tokens=roofline.kv_capacity_tokens(resident_bytes),
                usd_per_s=usd_per_hour * wide / SECONDS_PER_HOUR,
                time_scale=getattr(pool.backend, "time_scale", 1.0),
                failure_rate=pool.failure_rate or 0.0,
                latency_s=serving.first_token_ms / 1000 if serving else 0.0,
                error=device.error,
                is_assumed=device.is_assumed,
                busy_w=None if device.busy_w is None else device.busy_w * wide,
                idle_w=None if device.idle_w is None else device.idle_w * wide,
                site=pool.site,
                pool_kw_max=pool.power_kw_max,
                site_kw_max=None if pool.site is None else fleet.sites[pool.site].power_kw_max,
                quality=QUALITY[serve.precision] if serve.quality is None else serve.quality,
                rates=rates,
                tariff=_tariff(fleet, pool, usd_per_hour, device.busy_w),
                interruptions_per_s=pool.interruptions_per_hour / SECONDS_PER_HOUR,
                notice_s=pool.notice_s,
                gathers=pool.backend.type == "simulated",
                keeps_tpot=getattr(pool.backend, "prompt_chunks", "full") == "within_tpot",
                migrates=getattr(pool.backend, "replies", "stay") == "migrate",
                provider=pool.backend.provider_name,
            )
        )
    return tuple(options)


def _tariff(fleet: Fleet, pool: Pool, usd_per_hour: float, busy_w: float | None) -> Tariff | None:
    """Return what moves for the devices of a pool; None of one that is paid by tokens."""
    if pool.token_price is not None:
        return None
    named = (
        pool.tariff,
        of_place(fleet, pool, "usd_per_kwh"),
        of_place(fleet, pool, "gco2_per_kwh"),
    )
    if named == (None, None, None):
        return None
    curves = (
        None
        if each is None
        else (fleet.series[each] if isinstance(each, str) else Series(value=each)).curve
        for each in named
    )
    return Tariff(usd_per_hour, None if busy_w is None else busy_w / WATTS_PER_KW, *curves)
