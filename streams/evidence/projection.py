"""A fast reader for the fields of evidence that counting needs; the rest is skipped undecoded.

Decisions stand in rows (``topics.records.decision_rows``), or with names as earlier versions wrote
them; either way a step has them under the same names.

The ledger, the live view, the report and the verifier's stories use it. Decoding the whole record
takes seven to thirteen times as long. Fields are listed in the order of canonical JSON, in which
they are written, since each key is searched for after the one before. No step refers to itself, so
the garbage collector need not track it. Each of these two saves a tenth of the time.
"""

from typing import Any

import msgspec

from topics import Fallback, Hold
from topics.records.decision_reading import CandidateRow, RefusedRow, RowsOfDecision
from topics.records.decision_rows import MICRO, NANO, PATHS


class SeenSource(msgspec.Struct, kw_only=True, gc=False):
    """The record that a step consumed."""

    offset: int
    partition: int
    topic: str


class SeenTarget(msgspec.Struct, kw_only=True, gc=False):
    """The limits for an answer: latencies in seconds, the others in epoch seconds.

    ``replies`` are wanted to each of the ``prompts``.
    """

    created_at: float
    deadline: float
    prompts: int = 1
    replies: int = 1
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

    device: str = ""
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


class SeenSpent(msgspec.Struct, kw_only=True, gc=False):
    """The cost of tries that gave no answer."""

    nano_usd: int

    @property
    def usd(self) -> float:
        """US dollars."""
        return self.nano_usd / NANO


class SeenBatch(msgspec.Struct, kw_only=True, gc=False):
    """A member's place in its batch."""

    index: int
    size: int


class SeenDigest(msgspec.Struct, kw_only=True, gc=False):
    """The keyed digest of a text, and the id of the salt."""

    hmac: str
    salt: str


class SeenFootprint(msgspec.Struct, kw_only=True, gc=False):
    """Emissions of a request by the hour in which it ran."""

    gco2: float | None = None


_SKIPPED = msgspec.Raw()


class _ProfileRow(msgspec.Struct, array_like=True, gc=False):
    """The columns of ``PROFILE`` up to the last one that is needed."""

    created_at: float
    deadline: float
    input_tokens: int
    output_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    latency_sensitive: bool
    batchable: bool
    target_chance: float
    longest_wait_s: float
    window_s: float
    ingest_partition: int
    operation: str
    tier: str
    routed_at: float | None = None
    output_tokens_high: int | None = None
    regions: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    pools: tuple[str, ...] | None = None
    exclude_pools: tuple[str, ...] | None = None
    data_class: str | None = None
    labels: dict[str, str] | None = None
    max_cost_usd: float | None = None
    fallbacks: msgspec.Raw = _SKIPPED
    certain_tokens: msgspec.Raw = _SKIPPED
    key: msgspec.Raw = _SKIPPED
    bound_by: msgspec.Raw = _SKIPPED
    any_quality: msgspec.Raw = _SKIPPED
    quality: msgspec.Raw = _SKIPPED
    price_factor: msgspec.Raw = _SKIPPED
    quote: msgspec.Raw = _SKIPPED
    max_gco2: msgspec.Raw = _SKIPPED
    counts_energy: msgspec.Raw = _SKIPPED
    prompts: int | None = None
    replies: int | None = None


class _Decision(RowsOfDecision, kw_only=True, gc=False):
    profile: _ProfileRow | None = None


class EvidenceStep(msgspec.Struct, kw_only=True, gc=False):
    """A piece of evidence. ``at`` is epoch seconds; ``decision`` is None once it is read."""

    assumed: bool = False
    at: float
    attempt: int = 1
    decision: _Decision | None = None
    energy_wh: float | None = None
    footprint: SeenFootprint | None = None
    got: SeenEnvelope | None = None
    held_promise: SeenEnvelope | None = None
    placement: SeenPlacement | None = None
    promised: SeenEnvelope | None = None
    reason: str | None = None
    request_id: str
    source: SeenSource
    spent: SeenSpent | None = None
    step: str
    task: str | None = None
    tenant: str | None = None
    usage: SeenUsage | None = None

    @property
    def gco2(self) -> float:
        """Grams of CO2, as far as they are known."""
        return (self.footprint.gco2 or 0.0) if self.footprint is not None else 0.0


class AskedStep(EvidenceStep, kw_only=True, gc=False):
    """With all that the request wants. A client's lists can be long: don't keep it."""

    profile: SeenProfile | None = None
    response_digest: SeenDigest | None = None


class RoutedStep(EvidenceStep, kw_only=True, gc=False):
    """With the routing as well; reading candidates takes a quarter longer."""

    batch: SeenBatch | None = None
    candidates: tuple[SeenCandidate, ...] = ()
    fallback: Fallback | None = None
    hold: Hold | None = None
    profile: SeenTarget | None = None


_DECODE_STEP = msgspec.json.Decoder(AskedStep).decode
_DECODE_ROUTED = msgspec.json.Decoder(RoutedStep).decode


def decode_step(value: bytes) -> AskedStep:
    """Return the step in the bytes of a piece of evidence.

    Raises:
        msgspec.MsgspecError: they are none.
    """
    step = _DECODE_STEP(value)
    read_asked(step)
    return step


def read_asked(step: AskedStep) -> None:
    """Give a step what follows from its decision.

    Raises:
        msgspec.ValidationError: as ``read_choice``.
    """
    decision = step.decision
    if decision is not None:
        read_choice(step, decision)
        if decision.profile is not None:
            step.profile = _profile(decision.profile)


def decode_routed_step(value: bytes) -> RoutedStep:
    """Return the same, with the routing.

    Raises:
        msgspec.MsgspecError: as ``decode_step``.
    """
    step = _DECODE_ROUTED(value)
    decision = step.decision
    if decision is not None:
        read_choice(step, decision)
        step.candidates = step.candidates or candidates_of(decision)
        row = decision.profile
        if row is not None:
            step.profile = SeenTarget(
                created_at=row.created_at,
                deadline=row.deadline,
                ttft_s=row.ttft_s,
                tpot_s=row.tpot_s,
                prompts=row.prompts or 1,
                replies=row.replies or 1,
            )
    return step


def read_choice(step: Any, decision: RowsOfDecision) -> None:
    """Give a step the promise and the place that follow from its first candidate.

    Raises:
        msgspec.ValidationError: the rows contradict each other, or are of another schema.
    """
    try:
        decision.check()
    except ValueError as error:
        raise msgspec.ValidationError(str(error)) from error
    if decision.promised:
        step.promised = _promise(decision.candidates[0])
    if decision.device is not None:
        first = decision.candidates[0]
        pool, variant = decision.pools[first.pool], decision.variants[first.variant]
        step.placement = SeenPlacement(
            device=decision.device,
            model_variant=variant.name,
            path=PATHS[first.path],
            pool=pool.name,
            precision=variant.precision,
            region=pool.region or "",
        )
    step.decision = None


def candidates_of(decision: RowsOfDecision) -> tuple[SeenCandidate, ...]:
    """Return the candidates of a decision that was checked."""
    pools, variants = decision.pools, decision.variants
    rows: tuple[CandidateRow | RefusedRow, ...] = (*decision.candidates, *decision.refused)
    return tuple(
        SeenCandidate(
            cost_usd=row.cost_usd,
            model_variant=variants[row.variant].name,
            pool=pools[row.pool].name,
        )
        for row in rows
    )


def _promise(row: CandidateRow) -> SeenEnvelope:
    ttft_us, tpot_us, ppm = row.ttft_us, row.tpot_us, row.chance_ppm
    return SeenEnvelope(
        chance=None if ppm is None else ppm / MICRO,
        cost_usd=row.cost_usd,
        finish_s=row.finish_us / MICRO,
        tpot_s=None if tpot_us is None else tpot_us / MICRO,
        ttft_s=None if ttft_us is None else ttft_us / MICRO,
    )


def _profile(row: _ProfileRow) -> SeenProfile:
    return SeenProfile(
        created_at=row.created_at,
        deadline=row.deadline,
        exclude_pools=row.exclude_pools or (),
        latency_sensitive=row.latency_sensitive,
        max_cost_usd=row.max_cost_usd,
        pools=row.pools,
        precisions=row.precisions,
        prompts=row.prompts or 1,
        regions=row.regions,
        replies=row.replies or 1,
        tpot_s=row.tpot_s,
        ttft_s=row.ttft_s,
    )
