"""The live view at one moment, for programs: names are stable and include units.

Values of the window count from ``window.begins_at`` to ``at``; totals, from ``since``. Times are
epoch seconds. None means unknown.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Window:
    """The time range of rates, shares and quantiles."""

    begins_at: float
    s: float


@dataclass(frozen=True, slots=True)
class EndsView:
    """Ends of requests. ``refusals`` counts those without an answer by their reason code."""

    requests: int
    per_s: float
    statuses: dict[str, int]
    refusals: dict[str, int]
    dead_letters: dict[str, int]
    duplicates: int


@dataclass(frozen=True, slots=True)
class Money:
    """US dollars of busy device time, from results.

    ``premium_estimate_usd`` is for the same tokens on the cheapest premium GPU that might have
    served each request, shared by as many at a time (`policies.scoring.premium`);
    ``compared_usd`` is their cost. Requests that no premium GPU may or could serve, and those
    whose decision was not seen, are not compared.
    """

    usd: float
    usd_per_hour: float
    compared: int
    compared_usd: float
    premium_estimate_usd: float
    premium_estimate_usd_per_hour: float
    saving: float | None


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool. ``state`` is `up`, `draining`, `misfit`, or `none` if no worker reports.

    A misfit's worker has another device, region or precision than is declared, and gets nothing.

    ``load`` is ``running`` over ``slots``, which counts every variant's slots, so that it is never
    full. ``busy`` is the device time of the work completed in the window over that of all replicas,
    None if unknown: work that ends at once can exceed it for a while. ``speed`` is predicted over
    measured device time by model variant; ``circuits`` the variants whose circuit breaker is not
    closed on some worker; ``drifted`` those whose answers have drifted from a reference.
    ``assumed``: no servers were measured on its device, so that predictions
    for it err more. ``cached_share`` is the part of the answered prompts' tokens that prefix caches
    had, None if there were none. ``wh_per_request`` and ``total_wh`` are device time at busy power.
    ``usd_per_hour`` is for the work in the window, not the price of devices.
    """

    pool: str
    device: str | None
    kind: str | None
    assumed: bool
    region: str | None
    state: str
    workers: int
    slots: int
    running: int
    queued: int
    load: float
    busy: float | None
    backlog_s: float
    speed: dict[str, float]
    circuits: dict[str, str]
    drifted: list[str]
    direct: int
    batch: int
    fallbacks: int
    per_s: float
    usd: float
    usd_per_hour: float
    cached_share: float | None
    wh_per_request: float | None
    total_direct: int
    total_batch: int
    total_fallbacks: int
    total_usd: float
    total_wh: float


@dataclass(frozen=True, slots=True)
class GroupView:
    """A batch group with members, or with releases in the window.

    ``fill`` is ``held`` over ``full``, the policy's limit for a batch; a device may take fewer.
    ``release_in_s`` is the time until its window ends; negative if it waits for a pool or for room.
    ``prompt_tokens_max`` is the end of its bucket, ``constraints`` those shared by its members, as
    in a request. A full group, or one without slack, is released before that.
    """

    group: str
    model: str
    operation: str
    is_batch: bool
    prompt_tokens_max: int | None
    constraints: dict[str, Any]
    held: int
    full: int
    fill: float
    oldest_s: float | None
    release_in_s: float | None
    released: int
    batches: int
    reasons: dict[str, int]
    total_released: int
    total_batches: int


@dataclass(frozen=True, slots=True)
class GroupsView:
    """All groups, the fullest first. ``left_out`` is beyond what the view remembers."""

    held: int
    left_out: int
    groups: list[GroupView]


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload class. Latencies are seconds since ``created_at``, within 2 %.

    ``kept`` of the ``judged`` were completed by their deadline and within their latency SLO; that
    share is ``attainment``. Cancelled or rejected requests (``streams/evidence/slo_outcomes.py``),
    and those whose decision was not seen, are not judged.
    """

    task: str
    ended: int
    per_s: float
    statuses: dict[str, int]
    without_answer: int
    judged: int
    kept: int
    attainment: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    finish_p50_s: float | None
    finish_p99_s: float | None
    total_ended: int
    total_attainment: float | None


@dataclass(slots=True)
class FallbackView:
    """A failed try. ``to_pool`` is the request's next pool, None while that is open."""

    request_id: str
    at: float
    task: str | None
    from_pool: str
    to_pool: str | None
    reason: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole view. ``is_current`` is true once the existing records have been read.

    ``silent_s`` is the time since the newest record; ``unreadable`` records were skipped.
    ``unanswered_s`` is how long no broker has answered: workers are shown as they were then.
    """

    at: float
    since: float
    window: Window
    is_current: bool
    silent_s: float | None
    unanswered_s: float
    unreadable: int
    ended: EndsView
    ended_total: EndsView
    money: Money
    money_total: Money
    pools: list[PoolView]
    holds: GroupsView
    classes: list[Workload]
    fallbacks: list[FallbackView] = field(default_factory=list)
