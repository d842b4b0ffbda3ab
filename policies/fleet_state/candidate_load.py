"""Standings: the state of an option that estimates need from its pool's load, computed once.

A router estimates every candidate of every request, but a pool's load changes only with its
heartbeats and with work sent to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from msgspec import Raw

from policies.config.options import Option
from policies.fleet_state.estimate_terms import DecodeStep, EstimateTerms
from policies.fleet_state.gathering import Company, company, is_mixed
from policies.hardware.constants import AS_DECLARED, Factors, believable, corrected
from policies.hardware.roofline import TYPICAL_CONTEXT_TOKENS, Roofline
from topics import LatencyError

# Of the steps of a variant that joins other variants on a replica, the share that makes the
# replica busy for longer. At low traffic it would have been busy all the same; at high traffic not.
BUSY_ANYWAY = 0.5
# A pool counts as full by this share at least: what runs at its peak takes places for certain.
FULLNESS_MIN = 0.25
# Of the streaming that a sequence shares with others, the share that goes on because it came.
SUSTAINED = 0.5


Obstacle = Literal["pool_unavailable", "circuit_open", "power_limit", "worker_misfit"]
"""A reason to send nothing to an option that passes with time."""


class Learned(NamedTuple):
    """Values learned from a variant's past executions. A tuple, because each decision records it.

    Errors are those of promises, None until enough were seen; ``reuse`` is the share of a
    session's earlier tokens that its next turn finds in the cache.
    """

    ttft_error: LatencyError | None = None
    tpot_error: LatencyError | None = None
    reuse: float = 0.0


NOTHING = Learned()

UNMEASURED = (0.0, 0.0)
"""Transport that no worker has measured."""


class _Standings:
    """Values cached beside a load; not among the fields that a decision records.

    ``rows`` are those of its pool in evidence, by name, region and the variants that they tell of.
    For limits on power: ``requests`` its workers have or may yet get, ``aside`` get no work.
    """

    __slots__ = ("_corrected", "_standings", "_steps", "_worked_until", "aside", "requests", "rows")

    _corrected: dict[str, tuple[Option, Roofline]]
    _steps: dict[str, tuple[Option, int, tuple[float, float]]]
    _standings: "dict[str, OptionState]"
    rows: dict[tuple[str, str | None, frozenset[str] | None], Raw]
    _worked_until: float | None
    requests: int
    aside: int

    def begin(self) -> None:
        """Start with nothing cached, at no known time."""
        self._corrected, self._steps = {}, {}
        self._worked_until, self.requests, self.aside = None, 0, 0
        self.has_changed()

    def worked(self, now: float) -> float:
        """Return the seconds since this was last asked, 0 the first time."""
        since = self._worked_until
        self._worked_until = now
        return 0.0 if since is None else max(0.0, now - since)

    def draws_for(self, requests: int, aside: int) -> None:
        """Note how many requests draw power, and how many workers besides those that count."""
        self.requests, self.aside = requests, aside

    def has_changed(self) -> None:
        """Drop what is cached; callers that change a field must call this."""
        self._standings = {}
        self.rows = {}


@dataclass(slots=True)
class PoolLoad(_Standings):
    """Load of one pool over its live workers. ``backlog_s`` is device time per replica.

    ``round_s`` is the time of one iteration of every variant that runs now: variants that share
    a device take turns. ``failing`` are variants whose circuit no live worker has closed, and
    ``drifted`` those unlike a reference. ``kv_usage`` is the share of KV memory that is taken or
    waited for, 0 if no server reports it. ``is_misfit``: a worker is not what the fleet declares,
    so that none of the pool counts. ``learned`` by variant and ``failure_rate`` come from executed
    work, absent before any. ``constants`` are learned of the device: `Factors`, and the part of
    them that was measured, 0 to 1; None where none is told. ``power_kw`` is what pool and site
    would draw with one more request, None without a limit. ``gathered`` is one iteration of the
    variants that share replicas and how many variants run, of a pool that gathers its work.
    ``transport`` is what requests take to the pool in seconds, and the part of that which was
    measured, 0 to 1; the rest is the policy's. ``is_filled``: no replica idles, urgent work runs.
    """

    workers: int = 0
    running: int = 0
    queued: int = 0
    backlog_s: float = 0.0
    round_s: float = 0.0
    running_by_variant: dict[str, int] = field(default_factory=dict)
    speed_by_variant: dict[str, float] = field(default_factory=dict)
    failing: frozenset[str] = frozenset()
    kv_usage: float = 0.0
    learned: dict[str, Learned] = field(default_factory=dict)
    failure_rate: float | None = None
    constants: tuple[float, ...] | None = None
    power_kw: tuple[float, float] | None = None
    is_misfit: bool = False
    gathered: tuple[float, int] | None = None
    transport: tuple[float, float] | None = None
    drifted: frozenset[str] = frozenset()
    is_filled: bool = False

    def __post_init__(self) -> None:
        self.begin()

    @property
    def factors(self) -> Factors:
        """The learned factors of the device's constants, as far as they can be believed."""
        told = self.constants
        return AS_DECLARED if told is None else believable(told[:-1]) or AS_DECLARED

    @property
    def factors_known(self) -> float:
        """The measured part of the factors, 0 to 1."""
        told = self.constants
        return min(1.0, max(0.0, told[-1])) if told else 0.0

    def roofline(self, option: Option) -> Roofline:
        """Return the roofline of the pool's option by what was learned."""
        if self.constants is None:
            return option.roofline
        # Not dropped with what a changed load makes void: it is the same until a heartbeat.
        found = self._corrected.get(option.variant)
        if found is None or found[0] is not option:
            found = option, corrected(option.roofline, self.factors)
            self._corrected[option.variant] = found
        return found[1]

    def steps_s(self, option: Option) -> tuple[float, float]:
        """Return `running_step_s` and `mixed_step_s` of what runs of the pool's option."""
        running = self.running_by_variant.get(option.variant, 0)
        # Likewise; of the variants that nothing was sent to it is the same.
        found = self._steps.get(option.variant)
        if found is None or found[0] is not option or found[1] != running:
            steps_s = running_step_s(option, self, running), mixed_step_s(option, self, running)
            found = self._steps[option.variant] = option, running, steps_s
        return found[2]

    def standing(self, option: Option) -> "OptionState":
        """Return the standing of the pool's option; the same until the load changes."""
        found = self._standings.get(option.variant)
        if found is None or found.option is not option:
            found = self._standings[option.variant] = standing_of(option, self)
        return found

    def copied(self) -> "PoolLoad":
        """Return a copy of the current load."""
        return replace(self, running_by_variant=dict(self.running_by_variant))

    def obstacle(self, variant: str) -> Obstacle | None:
        """Return the temporary reason to send nothing to a variant now, or None."""
        if not self.workers:
            return "worker_misfit" if self.is_misfit else "pool_unavailable"
        return "circuit_open" if variant in self.failing else None

    def lacks_power(self, option: Option) -> bool:
        """Return True if one more request could take the pool or its site beyond its limit."""
        if self.power_kw is None:
            return False
        pool_kw, site_kw = self.power_kw
        limits = (pool_kw, option.pool_kw_max), (site_kw, option.site_kw_max)
        return any(limit is not None and kw > limit for kw, limit in limits)

    @property
    def is_idle(self) -> bool:
        """True if nothing runs or waits in the pool."""
        return not any(self.running_by_variant.values())


@dataclass(slots=True)
class OptionState:
    """The state of one option under one load. Times in seconds.

    Attributes:
        option: the option.
        roofline: its roofline, by what was learned of the device.
        obstacle: reason to send nothing there now, or None.
        is_idle: whether nothing runs or waits in its pool.
        running: sequences of the variant that run or wait.
        replicas: replicas of all live workers.
        slots: places of all replicas.
        speed: predicted device time over charged.
        pace: the speed of the backend's clock; times ``speed``, if the constants of the device are
            not learned.
        error: standard deviation of ln(actual / predicted) that is left of the declaration's.
        backlog_s: time before a request can start: device time, and the server's own latency.
        others_s: time of one iteration of the other variants on its replica, if the pool spreads
            its work evenly.
        company: who shares the fullest replica, of a pool that gathers its work; else None.
        transport: what requests take to the pool, and the part of it that was measured.
        failure_rate: share of tries that fail, learned or declared.
        learned: values learned from the variant's past executions.
        kv_usage: share of the pool's KV memory that is taken, with waiting work if reported.
        fullness: share of the variant's places that is taken, waiting work included, or of the
            KV memory if that is more.
        has_drifted: whether the variant's answers have drifted from a reference.
    """

    option: Option
    roofline: Roofline
    obstacle: Obstacle | None
    is_idle: bool
    running: int
    replicas: int
    slots: int
    speed: float
    pace: float
    error: float
    backlog_s: float
    others_s: float
    failure_rate: float = 0.0
    learned: Learned = NOTHING
    kv_usage: float = 0.0
    fullness: float = 0.0
    has_drifted: bool = False
    company: Company | None = None
    transport: tuple[float, float] = UNMEASURED
    known_terms: dict[int, EstimateTerms] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )
    """What `terms` has found, by members; negative if they fill gaps."""

    def terms(self, members: int, fills_gaps: bool) -> EstimateTerms:
        """Return the terms of an estimate for this many members that come together.

        The device time is marginal: what a decode step of one member adds. Work gathers on few
        replicas of a pool (`policies.hardware.replica`). If the variant decodes already, the
        weights are streamed anyway, and another sequence adds its own tokens. But the streaming
        continues because sequences keep coming, so the members sustain a share of it together;
        otherwise pools that decode a little each would look equally cheap and keep each other
        busy. As the pool fills, it takes a place from later ones, which will need another replica:
        at least that share of a full step. A replica busy with other variants would be busy
        without this one too, part of the time. An idle one is woken for these members.

        Args:
            members: like requests that come together.
            fills_gaps: they wait for room and take only unused places.
        """
        key = -members if fills_gaps else members
        found = self.known_terms.get(key)
        if found is None:
            found = self.known_terms[key] = _terms(self, members, fills_gaps)
        return found


def _terms(standing: OptionState, members: int, fills_gaps: bool) -> EstimateTerms:
    option, running = standing.option, standing.running
    roofline, max_batch = standing.roofline, option.max_batch
    together = min(max_batch, running + members)
    sequences = min(max_batch, running // standing.replicas + members)
    spread = gathered = DecodeStep(sequences, *roofline.sequences_s(sequences))
    # Of as many sequences it is the same step, which an estimate finds once.
    if together != sequences:
        gathered = DecodeStep(together, *roofline.sequences_s(together))
    found, crowd, mixed_s = standing.company, None, 0.0
    if found is not None:
        joining, mixed_s = min(max_batch, found.joined + members), found.mixed_s
        crowd = gathered
        if joining != together:
            crowd = DecodeStep(joining, *roofline.sequences_s(joining))
        if crowd is spread and not mixed_s:
            # It would be met by nobody.
            crowd = None
    if running == 0:
        woken, sharers = 1.0 if standing.is_idle else BUSY_ANYWAY, min(members, together)
        base_s = sustained_s = 0.0
    else:
        fullness = max(FULLNESS_MIN, min(1.0, running / standing.slots))
        # Of a pool that spreads its work evenly each member is on a replica of its own.
        alike = running + 1 if found is None else together
        share = 0.0 if fills_gaps else max(fullness / max_batch, SUSTAINED / alike)
        woken, sharers = 0.0, together
        base_s, sustained_s = roofline.alone_s, roofline.alone_s * share
    return EstimateTerms(
        roofline.token_s,
        roofline.pair_s,
        roofline.weights_s,
        roofline.kv_token_s,
        roofline.untouched_share,
        roofline.step_overhead_s,
        roofline.traffic_token_s,
        roofline.prefill_overhead_s,
        spread,
        gathered,
        woken,
        sharers,
        base_s,
        sustained_s,
        max(0, running + members - standing.slots),
        standing.slots,
        standing.kv_usage - 1.0,
        members / (max(1, option.kv_capacity_tokens) * standing.replicas),
        standing.speed,
        standing.pace,
        option.usd_per_s,
        standing.backlog_s,
        standing.others_s,
        crowd,
        mixed_s,
        *standing.transport,
    )


def standing_of(option: Option, load: PoolLoad) -> OptionState:
    """Return the standing of the option under this load of its pool."""
    running = load.running_by_variant.get(option.variant, 0)
    replicas = max(1, load.workers) * option.replicas
    slots = option.max_batch * replicas
    speed = load.speed_by_variant.get(option.variant, 1.0)
    latency_s, error = option.latency_s, option.error
    if load.constants is not None:
        latency_s *= load.factors.first_token
        error *= 1.0 - load.factors_known
    # The round of what runs holds a step of the variant's own already.
    own_s, mixed_s = load.steps_s(option)
    others_s, found = max(0.0, load.round_s - own_s), None
    if load.gathered is not None:
        found = company(option, -(-running // max(1, load.workers)), mixed_s, load.gathered)
        others_s *= found.others_share
    return OptionState(
        option=option,
        roofline=load.roofline(option),
        obstacle=load.obstacle(option.variant)
        or ("power_limit" if load.lacks_power(option) else None),
        is_idle=load.is_idle,
        running=running,
        replicas=replicas,
        slots=slots,
        speed=speed,
        pace=_pace(option, load),
        error=error,
        backlog_s=load.backlog_s + latency_s / option.time_scale,
        others_s=others_s,
        failure_rate=option.failure_rate if load.failure_rate is None else load.failure_rate,
        learned=load.learned.get(option.variant, NOTHING),
        kv_usage=load.kv_usage,
        fullness=max(running / slots, load.kv_usage),
        has_drifted=option.variant in load.drifted,
        company=found,
        transport=UNMEASURED if load.transport is None else load.transport,
    )


def running_step_s(
    option: Option, load: PoolLoad, sequences: int, context_tokens: int = TYPICAL_CONTEXT_TOKENS
) -> float:
    """Return one decode step of the variant with its sequences spread over all replicas."""
    if sequences == 0:
        return 0.0
    replicas = max(1, load.workers) * option.replicas
    each = min(option.max_batch, -(-sequences // replicas))
    return load.roofline(option).step_s(each, each * context_tokens) / _pace(option, load)


def mixed_step_s(option: Option, load: PoolLoad, sequences: int) -> float:
    """Return one decode step of all sequences of the variant together, where others share it."""
    each = -(-sequences // max(1, load.workers))
    if not is_mixed(option, each):
        return 0.0
    contexts = each * TYPICAL_CONTEXT_TOKENS
    return load.roofline(option).step_s(each, contexts) / _pace(option, load)


def _pace(option: Option, load: PoolLoad) -> float:
    """Return the speed at which latencies pass, as the option's roofline has them."""
    if load.constants is not None:
        return option.time_scale
    return load.speed_by_variant.get(option.variant, 1.0) * option.time_scale


NOBODY = PoolLoad()


def standing_in(loads: Mapping[str, PoolLoad], option: Option) -> OptionState:
    """Return an option's standing under loads by pool name; a missing pool has no load."""
    load = loads.get(option.pool)
    return standing_of(option, NOBODY) if load is None else load.standing(option)
