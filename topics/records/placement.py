"""The placement of a request: its target, expected cost, and the other candidates."""

from typing import Literal

from topics.records.frozen import dataclass
from topics.records.integers import Integer
from topics.records.profile import Fallback

Path = Literal["direct", "batch"]
CandidatePath = Literal["direct", "batch", "hold"]


@dataclass(frozen=True, slots=True)
class Envelope:
    """Cost and latency of a request, promised or got. Latencies: seconds since ``created_at``."""

    cost_usd: float
    ttft_s: float | None
    finish_s: float
    tpot_s: float | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The hardware a request is sent to."""

    pool: str
    device: str
    model_variant: str
    precision: str
    region: str
    path: Path
    batch_id: str | None = None
    attempt: Integer = 1
    fallbacks: tuple[Fallback, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a request, as it stood when the decision was made.

    ``refused`` is a stable reason code if the candidate was not eligible, else None; a refused
    candidate has no estimates.
    """

    pool: str
    model_variant: str
    precision: str
    region: str
    path: CandidatePath
    cost_usd: float | None = None
    ttft_s: float | None = None
    finish_s: float | None = None
    tpot_s: float | None = None
    chance: float | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and a member's place in it; sent as the ``shunter-batch-*`` headers."""

    id: str
    index: int
    size: int
