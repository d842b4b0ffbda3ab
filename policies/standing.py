"""Standings: how an option stands, all that an estimate needs of its pool's load, found once.

A router asks for the estimate of every candidate of every request, and the load of a pool changes
with its heartbeats and with what is sent there only.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from policies.options import Option
from policies.roofline import TYPICAL_CONTEXT_TOKENS
from topics import LatencyError


class Learned(NamedTuple):
    """What past executions of a variant tell. A tuple, because each decision records it.

    Errors are those of promises, None before enough were seen; ``reuse`` is the share of a
    session's earlier tokens that its next turn finds in the cache.
    """

    ttft_error: LatencyError | None = None
    tpot_error: LatencyError | None = None
    reuse: float = 0.0


NOTHING = Learned()


@dataclass(slots=True)
class PoolLoad:
    """Load of one pool over its live workers. ``backlog_s`` is device time per replica.

    ``round_s`` is the time of one iteration of every variant that runs now: variants that share
    a device take turns. ``failing`` are the variants whose circuit no live worker has closed.
    ``kv_usage`` is the share of KV memory that is taken, 0 where no server tells of it.
    ``learned`` by variant and ``failure_rate`` come from what was executed, absent before.
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

    def obstacle(self, variant: str) -> Literal["pool_unavailable", "circuit_open"] | None:
        """Return why nothing should be sent to a variant now, though time may help; else None."""
        if not self.workers:
            return "pool_unavailable"
        return "circuit_open" if variant in self.failing else None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits in the pool."""
        return not any(self.running_by_variant.values())


@dataclass(slots=True)
class Standing:
    """How one option stands under one load. Times in seconds.

    Attributes:
        option: whose standing.
        obstacle: why nothing should be sent there now; None if something may be.
        is_idle: whether nothing runs or waits in its pool.
        running: sequences of the variant that run or wait.
        replicas: of all live workers.
        slots: places of all replicas.
        speed: measured speed over predicted.
        pace: the same, times that of the backend's clock.
        backlog_s: device time before a request can start.
        others_s: time of one iteration of all other variants that run.
        failure_rate: share of tries that fail, learned or declared.
        learned: what past executions of the variant tell.
        fullness: share of the variant's places that is taken, waiting work included, or of the
            KV memory if that is more.
    """

    option: Option
    obstacle: Literal["pool_unavailable", "circuit_open"] | None
    is_idle: bool
    running: int
    replicas: int
    slots: int
    speed: float
    pace: float
    backlog_s: float
    others_s: float
    failure_rate: float = 0.0
    learned: Learned = NOTHING
    fullness: float = 0.0


def standing_of(option: Option, load: PoolLoad) -> Standing:
    """Return how the option stands under this load of its pool."""
    running = load.running_by_variant.get(option.variant, 0)
    replicas = max(1, load.workers) * option.replicas
    slots = option.max_batch * replicas
    speed = load.speed_by_variant.get(option.variant, 1.0)
    return Standing(
        option=option,
        obstacle=load.obstacle(option.variant),
        is_idle=load.is_idle,
        running=running,
        replicas=replicas,
        slots=slots,
        speed=speed,
        pace=speed * option.time_scale,
        backlog_s=load.backlog_s,
        # The round of what runs holds a step of the variant's own already.
        others_s=max(0.0, load.round_s - running_step_s(option, load, running)),
        failure_rate=option.failure_rate if load.failure_rate is None else load.failure_rate,
        learned=load.learned.get(option.variant, NOTHING),
        fullness=max(running / slots, load.kv_usage),
    )


def running_step_s(
    option: Option, load: PoolLoad, sequences: int, context_tokens: int = TYPICAL_CONTEXT_TOKENS
) -> float:
    """Return one decode step of the variant with its sequences spread over all replicas."""
    if sequences == 0:
        return 0.0
    replicas = max(1, load.workers) * option.replicas
    each = min(option.max_batch, -(-sequences // replicas))
    speed = load.speed_by_variant.get(option.variant, 1.0) * option.time_scale
    return option.roofline.step_s(each, each * context_tokens) / speed
