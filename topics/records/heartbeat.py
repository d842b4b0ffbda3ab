"""The heartbeat of a worker: capacity, load, health and measured speed."""

from dataclasses import dataclass, field
from typing import Literal

State = Literal["up", "draining", "down"]
Circuit = Literal["closed", "open", "half_open"]
"""State of a circuit breaker: work should be sent only while it is ``closed``."""

LatencyError = tuple[float, float, float]
"""Error of promised latencies: quantiles of ln(actual / promised) at 0.5, 0.9 and 0.98, which
differ. Only upper ones, because what matters is how much slower than promised it may get.
A tuple, because each decision records those that it was made with."""

DUE_S = (1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0, 86_400.0)
"""Bounds of the time to a deadline, by which unfinished work is told apart."""


@dataclass(frozen=True, slots=True)
class VariantStatus:
    """Load of one model variant on a worker.

    ``speed`` is predicted over measured device time: 2.0 is charged half of what is predicted, by
    the pool's ``factors`` if it tells any.
    Errors are those of direct requests, None before enough were served. ``reuse`` is the
    share of a session's earlier tokens that the next turn found in the cache, 0.0 before any did.
    ``speed_known`` and ``reuse_known`` are the measured part of each (0 to 1); the rest is the
    worker's initial value. A worker that reports neither counts in full.
    """

    running: int = 0
    queued: int = 0
    speed: float = 1.0
    circuit: Circuit = "closed"
    ttft_error: LatencyError | None = None
    tpot_error: LatencyError | None = None
    reuse: float = 0.0
    speed_known: float = 1.0
    reuse_known: float = 1.0
    precision: str = ""
    """Of its weights; empty where the worker doesn't tell."""


@dataclass(frozen=True, slots=True)
class OutputLengths:
    """Lengths of the replies that a worker has seen, of one class, model and tenant.

    ``mean_tokens`` is exact; ``counts`` are a sketch's (``policies.learning.histogram``): its
    first bin, then the counts from it on.
    """

    task: str
    model: str
    tenant: str
    mean_tokens: float
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """Load that a model server reports, including requests of its other clients.

    ``kv_usage`` is the share of its KV cache in use, or that it would use if it had more. A value
    that it does not report is None.
    """

    running: int | None = None
    queued: int | None = None
    kv_usage: float | None = None


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One worker's report, keyed ``{pool}/{instance}``. ``at`` is epoch seconds."""

    pool: str
    instance: str
    at: float
    state: State
    interval_s: float
    device: str
    region: str
    slots: int
    running: int
    queued: int
    backlog_s: float
    """Device time of the work taken and not begun, per replica, in seconds."""
    variants: dict[str, VariantStatus] = field(default_factory=dict)
    fleet_version: str = ""
    server: ServerLoad | None = None
    replicas: int = 1
    """Replicas behind this worker."""
    demand_s: tuple[float, ...] = ()
    """Device time of the work taken and not finished, by when it is due (``DUE_S``)."""
    output_lengths: tuple[OutputLengths, ...] = ()
    """Of the kinds of requests that this worker has served most."""
    failure_rate: float | None = None
    """Share of tries that failed; None where the worker doesn't count them."""
    unread: int | None = None
    """Requests on its partitions that it has not taken yet, about; None where it doesn't know."""
    unread_s: tuple[float, ...] = ()
    """Device time of those, by when it is due (``DUE_S``), if they are like those taken last."""
    failure_known: float = 1.0
    """The part of the failure rate that was counted (0 to 1), the rest being the declared one."""
    factors: tuple[float, ...] | None = None
    """Measured over declared times of what its device's constants are made of, in the order of
    ``policies.hardware.constants.Factors``; None where the worker doesn't learn them."""
    factors_known: float = 0.0
    """The measured part of the factors (0 to 1); the rest is the declaration's."""
    transport_s: float | None = None
    """What requests usually take from a router's decision to this worker, in seconds; None: none
    came yet, or the worker doesn't measure it."""
    transport_known: float = 0.0
    """The measured part of that (0 to 1); the rest is the policy's."""
    idle_replicas: int | None = None
    """Replicas on which nothing runs or waits; None where the worker doesn't know."""
    urgent: int = 0
    """Requests with an SLO of TTFT or TPOT that it has taken and not finished."""
    pool_version: str = ""
    """Digest of what the worker's fleet says of its pool; empty where it doesn't tell."""


def status_key(pool: str, instance: str) -> bytes:
    """Return the key of a worker's heartbeat."""
    return f"{pool}/{instance}".encode()
