"""The heartbeat of a worker: capacity, load, health and measured speed."""

from dataclasses import dataclass, field
from typing import Literal

State = Literal["up", "draining", "down"]


@dataclass(frozen=True, slots=True)
class VariantStatus:
    """Load of one model variant on a worker.

    ``speed`` is predicted over measured device time: 2.0 runs twice as fast as its roofline.
    """

    running: int = 0
    queued: int = 0
    speed: float = 1.0


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


def status_key(pool: str, instance: str) -> bytes:
    """Return the key of a worker's heartbeat."""
    return f"{pool}/{instance}".encode()
