"""Of a piece of evidence, what the live view looks at; the rest is passed over unread.

To decode the whole record takes ten times as long, and a view has to keep up with all of them.
"""

import msgspec


class StepTarget(msgspec.Struct):
    """Of a profile, what an answer has to keep: times in seconds, the deadline in epoch seconds."""

    created_at: float
    deadline: float
    ttft_s: float | None = None
    tpot_s: float | None = None


class SeenCandidate(msgspec.Struct):
    """A way to serve the request, as it was estimated; no cost where it was refused."""

    pool: str
    cost_usd: float | None = None


class SeenPlacement(msgspec.Struct):
    """Where the request went."""

    pool: str
    path: str


class StepLatency(msgspec.Struct):
    """Latencies in seconds since ``created_at``."""

    cost_usd: float
    finish_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None


class SeenBatch(msgspec.Struct):
    """A member's place in its batch."""

    index: int
    size: int


class SeenHold(msgspec.Struct):
    """The group that was waited in."""

    group: str


class SeenFallback(msgspec.Struct):
    """The pool that failed."""

    pool: str


class EvidenceStep(msgspec.Struct):
    """A piece of evidence. ``at`` is epoch seconds."""

    request_id: str
    step: str
    at: float
    task: str | None = None
    attempt: int = 1
    profile: StepTarget | None = None
    candidates: tuple[SeenCandidate, ...] = ()
    placement: SeenPlacement | None = None
    got: StepLatency | None = None
    batch: SeenBatch | None = None
    hold: SeenHold | None = None
    fallback: SeenFallback | None = None
    reason: str | None = None


decode_step = msgspec.json.Decoder(EvidenceStep).decode
"""Return the step in the bytes of a piece of evidence. Raises msgspec.MsgspecError."""
