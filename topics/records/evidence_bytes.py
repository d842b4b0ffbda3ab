"""Evidence as it is written: canonical JSON, with what is absent left out and decisions in rows.

``decode(Evidence, value)`` reads it, and what earlier versions wrote with all names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import msgspec

from topics.records.decision_rows import (
    SCHEMA,
    TAGS,
    DecisionRows,
    RecordedInputs,
    Row,
    UnfitError,
    candidate_rows,
    in_units,
    plain,
    profile_row,
    rounded,
    tag_rows,
)
from topics.records.decision_tables import Tables
from topics.records.evidence import Evidence, Hold, Host, Shadow, Step
from topics.records.footprint import Footprint
from topics.records.money import Reservation, Settlement, Spent
from topics.records.placement import Batch, Candidate, Envelope, Placement
from topics.records.profile import Fallback, Profile, Tag
from topics.records.quality import Comparison, VariantQuality
from topics.records.quote import QuoteOffer
from topics.records.quote_terms import Charge
from topics.records.result import Usage
from topics.wire.canonical_json import canonical

_ENCODE = msgspec.json.Encoder(order="deterministic").encode
# The members of our records too, of which some are not declared in order.
_ENCODE_SORTED = msgspec.json.Encoder(order="sorted").encode


class _Source(msgspec.Struct, gc=False):
    offset: int
    partition: int
    topic: str


class _Digest(msgspec.Struct, omit_defaults=True, gc=False):
    hmac: str
    salt: str
    whole: str | None = None


class _Envelope(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Its numbers, each in its plain form."""

    chance: Any = None
    cost_usd: Any
    finish_s: Any
    tpot_s: Any = None
    ttft_s: Any


class _Placement(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    attempt: int = 1
    batch_id: str | None = None
    device: str
    fallbacks: tuple[Fallback, ...] | None = None
    model_variant: str
    path: str
    pool: str
    precision: str
    region: str


class _Written(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The members of evidence, in the order of canonical JSON."""

    assumed: bool = False
    at: Any
    attempt: int = 1
    batch: Batch | None = None
    candidates: Sequence[Candidate] | None = None
    charge: Charge | None = None
    comparison: Comparison | None = None
    decided_with: str | None = None
    decision: DecisionRows | None = None
    energy_wh: Any = None
    fallback: Fallback | None = None
    fleet_version: str | None = None
    footprint: Footprint | None = None
    got: _Envelope | None = None
    held_promise: _Envelope | None = None
    hold: Hold | None = None
    host: Host | None = None
    inputs: Any = None
    message: str | None = None
    model: str | None = None
    model_digest: str | None = None
    offers: Sequence[QuoteOffer] | None = None
    placement: _Placement | None = None
    policy_version: str | None = None
    profile: Profile | None = None
    promised: _Envelope | None = None
    reason: str | None = None
    request_digest: _Digest | None = None
    request_id: str
    reserved: Reservation | None = None
    response_digest: _Digest | None = None
    settled: Settlement | None = None
    shadow: Shadow | None = None
    source: _Source
    spent: Spent | None = None
    step: Step
    tags: Mapping[str, Tag] | None = None
    task: str | None = None
    tenant: str | None = None
    trace_id: str | None = None
    usage: Usage | None = None
    variant_quality: VariantQuality | None = None
    view_version: int | None = None
    writer: str


def evidence_bytes(evidence: Evidence) -> bytes:
    """Return evidence as canonical JSON.

    Raises:
        ValueError: a string is not valid Unicode.
    """
    written = _common(evidence)
    if not evidence.candidates and evidence.profile is None:
        is_ready, encode = _put_named(evidence, written), _ENCODE_SORTED
    else:
        is_ready, encode = _put_decision(evidence, written), _ENCODE
    if is_ready:
        try:
            raw = encode(written)
        except UnicodeEncodeError as error:
            raise ValueError(f"no Unicode: {error.reason}") from error
        # Only names beyond ASCII may have another order.
        if raw.isascii():
            return raw
    return canonical(written)


def _common(evidence: Evidence) -> _Written:
    """Return what is written as it is."""
    source, asked, answered = evidence.source, evidence.request_digest, evidence.response_digest
    return _Written(
        assumed=evidence.assumed,
        at=plain(evidence.at),
        attempt=evidence.attempt,
        batch=evidence.batch,
        charge=evidence.charge,
        comparison=evidence.comparison,
        decided_with=evidence.decided_with,
        energy_wh=plain(evidence.energy_wh),
        fallback=evidence.fallback,
        fleet_version=evidence.fleet_version,
        footprint=evidence.footprint,
        got=_envelope(evidence.got),
        held_promise=_envelope(evidence.held_promise),
        hold=evidence.hold,
        host=evidence.host,
        message=evidence.message,
        model=evidence.model,
        model_digest=evidence.model_digest,
        offers=evidence.offers or None,
        policy_version=evidence.policy_version,
        reason=evidence.reason,
        request_digest=None if asked is None else _Digest(asked.hmac, asked.salt, asked.whole),
        request_id=evidence.request_id,
        reserved=evidence.reserved,
        response_digest=None if answered is None else _Digest(answered.hmac, answered.salt),
        settled=evidence.settled,
        shadow=_shadow(evidence.shadow),
        source=_Source(source.offset, source.partition, source.topic),
        spent=evidence.spent,
        step=evidence.step,
        task=evidence.task,
        tenant=evidence.tenant,
        trace_id=evidence.trace_id,
        usage=evidence.usage,
        variant_quality=evidence.variant_quality,
        view_version=evidence.view_version,
        writer=evidence.writer,
    )


def _put_named(evidence: Evidence, written: _Written) -> bool:
    """Put what a step has that is no decision, and return whether all its numbers are plain."""
    placement = evidence.placement
    written.placement = None if placement is None else _placement(placement)
    promised = evidence.promised
    if promised is not None and evidence.step in _DECIDED:
        promised = rounded(promised)
    written.promised = _envelope(promised)
    written.tags, written.inputs = evidence.tags, evidence.inputs
    return _NUMBERED(evidence) == _NO_NUMBERS and not evidence.offers


def _put_decision(evidence: Evidence, written: _Written) -> bool:
    """Put the decision in rows, and return whether all that is written stands in order.

    What does not fit into rows is written with its names.
    """
    decision = written.decision = DecisionRows(schema=SCHEMA)
    tables = Tables()
    unordered = (evidence.got, evidence.hold, evidence.host, evidence.shadow, evidence.usage)
    is_ordered = unordered == _NOTHING and evidence.reserved is None and evidence.spent is None
    is_ordered = is_ordered and evidence.footprint is None
    try:
        rows, refused = _candidate_rows(evidence.candidates, tables)
        decision.candidates, decision.refused = rows or None, refused or None
    except (UnfitError, OverflowError):
        written.candidates, is_ordered = tuple(evidence.candidates), False
        if tables.numbering is None:
            tables = Tables()
    profile = _own_profile(evidence)
    if profile is not None:
        decision.profile = profile_row(profile, evidence.at)
    elif evidence.profile is not None:
        written.profile, is_ordered = evidence.profile, False
    weights = None
    if evidence.tags is not None:
        if profile is None or not evidence.tags.keys() <= _KNOWN_TAGS:
            written.tags, is_ordered = evidence.tags, False
        else:
            decision.tags, weights = tag_rows(evidence.tags, profile, tables)
    _put_choice(evidence, profile, written)
    is_ordered = is_ordered and written.promised is None
    if hasattr(evidence.inputs, "recorded"):
        pools = _put_inputs(evidence.inputs.recorded(tables), decision)
    else:
        pools = tables.rows_of_pools()
        is_ordered = is_ordered and evidence.inputs is None
        written.inputs = evidence.inputs
    decision.pools = pools or None
    decision.variants = tables.rows_of_variants(weights)
    return is_ordered


def _candidate_rows(candidates: Sequence[Candidate], tables: Tables) -> tuple[list[Row], list[Row]]:
    """Return the rows of candidates; those of a decision just made stand in columns."""
    recorded = getattr(candidates, "recorded", None)
    found = None if recorded is None else recorded(tables)
    return candidate_rows(candidates, tables) if found is None else found


_KNOWN_TAGS = frozenset(TAGS)
# Their promises are compared with others of the same decision, which stand in whole units.
_DECIDED = frozenset({"placed", "held", "released"})
_NOTHING = (None,) * 5
# What few steps have, and may hold numbers that msgspec writes otherwise.
_NUMBERED = attrgetter(
    "charge", "comparison", "footprint", "hold", "inputs", "reserved",
    "settled", "shadow", "spent", "tags", "variant_quality",
)  # fmt: skip
_NO_NUMBERS = (None,) * 11


def _own_profile(evidence: Evidence) -> Profile | None:
    """Return the profile, if what it shares with its evidence is the same in both."""
    profile = evidence.profile
    if (
        profile is None
        or (profile.session, profile.reserved, profile.spent) != (None, None, None)
        or profile.id != evidence.request_id
        or profile.tenant != evidence.tenant
        or profile.task != evidence.task
        or profile.model != evidence.model
        or profile.attempt != evidence.attempt
    ):
        return None
    return profile


def _put_choice(evidence: Evidence, profile: Profile | None, written: _Written) -> None:
    """Leave out promise and placement where they follow from the first candidate."""
    decision, promised, placement = written.decision, evidence.promised, evidence.placement
    first = None
    if decision is not None and decision.candidates is not None:
        first = evidence.candidates[0]
    if promised is not None:
        if decision is not None and first is not None and _is_promise(first, promised):
            decision.promised = True
        else:
            written.promised = _envelope(rounded(promised))
    if placement is not None:
        fallbacks = () if profile is None else profile.fallbacks
        if (
            decision is not None
            and first is not None
            and _is_place(first, placement)
            and placement.batch_id == evidence.batch_id
            and placement.attempt == evidence.attempt
            and placement.fallbacks == fallbacks
        ):
            decision.device = placement.device
        else:
            written.placement = _placement(placement)


def _is_promise(first: Candidate, promised: Envelope) -> bool:
    return (
        promised.cost_usd == first.cost_usd
        and promised.ttft_s == first.ttft_s
        and promised.finish_s == first.finish_s
        and promised.tpot_s == first.tpot_s
        and promised.chance == first.chance
    )


def _is_place(first: Candidate, placement: Placement) -> bool:
    return (
        placement.pool == first.pool
        and placement.model_variant == first.model_variant
        and placement.precision == first.precision
        and placement.region == first.region
        and placement.path == first.path
    )


def _put_inputs(inputs: RecordedInputs, decision: DecisionRows) -> Sequence[Any]:
    """Put all inputs but the loads, and return the pools with these."""
    decision.arrivals_per_s = inputs.arrivals_per_s
    decision.credit = inputs.credit
    decision.head = inputs.head
    decision.waiting = inputs.waiting
    decision.idle_arrivals_per_s = inputs.idle_arrivals_per_s
    return inputs.pools


def _shadow(shadow: Shadow | None) -> Shadow | None:
    """Return a second policy's decision in the units of the first one's."""
    if shadow is None:
        return None
    cost_usd, chance = in_units(shadow.cost_usd, shadow.chance)
    return replace(shadow, cost_usd=cost_usd, chance=chance)


def _envelope(envelope: Envelope | None) -> _Envelope | None:
    if envelope is None:
        return None
    return _Envelope(
        chance=plain(envelope.chance),
        cost_usd=plain(envelope.cost_usd),
        finish_s=plain(envelope.finish_s),
        tpot_s=plain(envelope.tpot_s),
        ttft_s=plain(envelope.ttft_s),
    )


def _placement(placement: Placement) -> _Placement:
    return _Placement(
        attempt=placement.attempt,
        batch_id=placement.batch_id,
        device=placement.device,
        fallbacks=placement.fallbacks or None,
        model_variant=placement.model_variant,
        path=placement.path,
        pool=placement.pool,
        precision=placement.precision,
        region=placement.region,
    )
