"""A fast reader for the fields of evidence that counting needs; the rest is skipped undecoded.

The ledger, the live view, the report and the verifier's stories use it. Decoding the whole record
takes seven to nine times as long. Fields are listed in the order of canonical JSON, in which they
are written, since each key is searched for after the one before. No step refers to itself, so the
garbage collector need not track it. Each of these two saves a tenth of the time.
"""

import msgspec

from topics import Fallback, Hold


class SeenSource(msgspec.Struct, kw_only=True, gc=False):
    """The record that a step consumed."""

    offset: int
    partition: int
    topic: str


class SeenTarget(msgspec.Struct, kw_only=True, gc=False):
    """The limits for an answer: latencies in seconds, the others in epoch seconds."""

    created_at: float
    deadline: float
    tpot_s: float | None = None
    ttft_s: float | None = None


class SeenProfile(SeenTarget, kw_only=True, gc=False):
    """The rest of what the request wants; see ``Profile``."""

    exclude_pools: tuple[str, ...] = ()
    latency_sensitive: bool
    max_cost_usd: float | None = None
    pools: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None


class SeenCandidate(msgspec.Struct, kw_only=True, gc=False):
    """A way to serve the request, as estimated; without cost if it was refused."""

    cost_usd: float | None = None
    model_variant: str
    pool: str


class SeenPlacement(msgspec.Struct, kw_only=True, gc=False):
    """The place that the request was sent to."""

    model_variant: str
    path: str
    pool: str
    precision: str
    region: str


class SeenEnvelope(msgspec.Struct, kw_only=True, gc=False):
    """Cost and latencies, promised or measured; latencies in seconds since ``created_at``."""

    chance: float | None = None
    cost_usd: float
    finish_s: float
    tpot_s: float | None = None
    ttft_s: float | None = None


class SeenUsage(msgspec.Struct, kw_only=True, gc=False):
    """Tokens and tools."""

    cached_tokens: int = 0
    input_tokens: int
    output_tokens: int
    tool_calls: int = 0


class SeenBatch(msgspec.Struct, kw_only=True, gc=False):
    """A member's place in its batch."""

    index: int
    size: int


class EvidenceStep(msgspec.Struct, kw_only=True, gc=False):
    """A piece of evidence. ``at`` is epoch seconds."""

    at: float
    attempt: int = 1
    got: SeenEnvelope | None = None
    placement: SeenPlacement | None = None
    promised: SeenEnvelope | None = None
    reason: str | None = None
    request_id: str
    source: SeenSource
    step: str
    task: str | None = None
    tenant: str | None = None
    usage: SeenUsage | None = None


class AskedStep(EvidenceStep, kw_only=True, gc=False):
    """With all that the request wants. A client's lists can be long: don't keep it."""

    profile: SeenProfile | None = None


class RoutedStep(EvidenceStep, kw_only=True, gc=False):
    """With the routing as well; reading candidates takes a quarter longer."""

    batch: SeenBatch | None = None
    candidates: tuple[SeenCandidate, ...] = ()
    fallback: Fallback | None = None
    hold: Hold | None = None
    profile: SeenTarget | None = None


decode_step = msgspec.json.Decoder(AskedStep).decode
"""Return the step in the bytes of a piece of evidence. Raises msgspec.MsgspecError."""

decode_routed_step = msgspec.json.Decoder(RoutedStep).decode
"""The same, with the routing."""
