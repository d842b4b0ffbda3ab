"""Span attributes: the messaging and GenAI conventions, and ``shunter.*`` where these have no name.

No attribute holds text of a request or an answer. Recurring attributes are kept encoded: most of a
span's are the same for many, and take one lookup.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache

from opentelemetry.util.types import AttributeValue

from policies.scoring.reasons import has_choice, reasons
from streams.tracing import otlp_encoding as otlp
from topics import Candidate, Evidence, Placement
from topics.records.decision_rows import in_units

# Encoded attributes of a span; they can be concatenated.
Said = bytes

# If a fleet has more ways to serve a model, the others are only counted.
CANDIDATES_MAX = 10


def seconds(value: float) -> float:
    """Return a time rounded for people: to the microsecond."""
    return round(value, 6)


def usd(value: float) -> float:
    """Return an amount rounded for people: to the billionth."""
    return round(value, 9)


def said(attributes: Mapping[str, AttributeValue | None]) -> Said:
    """Return the attributes of a span; None values are left out."""
    found = {name: value for name, value in attributes.items() if value is not None}
    return otlp.attributes_of(otlp.OF_SPAN, found)


SAMPLED_LATE = said({"shunter.sampled.late": True})


def linked(attributes: Mapping[str, AttributeValue]) -> bytes:
    """Return the attributes of a link."""
    return otlp.attributes_of(otlp.OF_LINK, attributes)


def measured(name: str, value: float) -> Said:
    """Return a number that rarely recurs."""
    return otlp.number_of(otlp.OF_SPAN, name) + otlp.real(value)


@lru_cache(otlp.KEPT_MAX)
def messaging(topic: str, operation: str) -> Said:
    """Return the conventions' attributes of every span of a topic; ``send`` or ``process``."""
    return said(
        {
            "messaging.system": "kafka",
            "messaging.operation.type": operation,
            "messaging.operation.name": operation,
            "messaging.destination.name": topic,
        }
    )


@lru_cache(otlp.KEPT_MAX)
def queued(topic: str) -> Said:
    """Return the topic on which a request waited."""
    return said({"messaging.destination.name": topic})


# The spans of a request are written one after the other.
@lru_cache(16)
def message(request_id: str) -> Said:
    """Return the request of a span."""
    return otlp.attribute(otlp.OF_SPAN, "messaging.message.id", request_id)


def consumed(evidence: Evidence, group: str) -> Said:
    """Return the conventions' attributes of the span that processes a record."""
    source = evidence.source
    offset = otlp.attribute(otlp.OF_SPAN, "messaging.kafka.offset", source.offset)
    return _consumed(source.topic, source.partition, group) + offset


@lru_cache(otlp.KEPT_MAX)
def _consumed(topic: str, partition: int, group: str) -> Said:
    return messaging(topic, "process") + said(
        {
            "messaging.destination.partition.id": str(partition),
            "messaging.consumer.group.name": group,
        }
    )


def request(evidence: Evidence) -> Said:
    """Return the kind of a span's request, and the terms it was decided by."""
    return asked(evidence.task, evidence.tenant, evidence.model, evidence.attempt) + _versions(
        evidence.policy_version, evidence.fleet_version
    )


@lru_cache(otlp.KEPT_MAX)
def asked(
    task: str | None, tenant: str | None, model: str | None, attempt: int | None = None
) -> Said:
    """Return the kind of a span's request."""
    return said(
        {
            "shunter.task": task,
            "shunter.tenant": tenant,
            "shunter.model": model,
            "shunter.attempt": attempt,
        }
    )


@lru_cache(otlp.KEPT_MAX)
def _versions(policy: str | None, fleet: str | None) -> Said:
    return said({"shunter.policy.version": policy, "shunter.fleet.version": fleet})


def place(placement: Placement) -> Said:
    """Return the place that a request was sent to."""
    told = _place(placement.pool, placement.model_variant, placement.path)
    if placement.batch_id is not None:
        told += said({"shunter.batch.id": placement.batch_id})
    if placement.fallbacks:
        pools = [f"{f.pool}: {f.reason}" for f in placement.fallbacks]
        told += said({"shunter.fallback.pools": pools})
    return told


@lru_cache(otlp.KEPT_MAX)
def _place(pool: str, variant: str, path: str) -> Said:
    return said(
        {
            "shunter.pool": pool,
            "shunter.model_variant": variant,
            "shunter.placement.path": path,
        }
    )


def hardware(placement: Placement) -> Said:
    """Return the hardware of a request."""
    return place(placement) + _hardware(placement.device, placement.precision, placement.region)


@lru_cache(otlp.KEPT_MAX)
def _hardware(device: str, precision: str, region: str) -> Said:
    return said(
        {
            "shunter.device": device,
            "shunter.precision": precision,
            "shunter.region": region,
        }
    )


def decision(evidence: Evidence) -> Said:
    """Return the decision and its reason; the first candidate has what was promised."""
    left_out = max(0, len(evidence.candidates) - CANDIDATES_MAX)
    told = _decision(evidence.step, evidence.reason, left_out)
    return told if evidence.placement is None else told + place(evidence.placement)


@lru_cache(otlp.KEPT_MAX)
def _decision(step: str, reason: str | None, left_out: int) -> Said:
    return said(
        {
            "shunter.decision": step,
            "shunter.decision.reason": reason,
            "shunter.candidates.left_out": left_out or None,
        }
    )


def candidates(evidence: Evidence) -> Iterator[bytes]:
    """Return an encoded event for each candidate of a decision, the chosen one first."""
    is_choice = has_choice(evidence)
    shown = zip(evidence.candidates[:CANDIDATES_MAX], reasons(evidence), strict=False)
    told = (
        _candidate(each, reason, is_chosen=is_choice and number == 0)
        for number, (each, reason) in enumerate(shown)
    )
    return otlp.events("candidate", evidence.at, told)


def _candidate(candidate: Candidate, reason: str, *, is_chosen: bool) -> bytes:
    named = _named(candidate.pool, candidate.model_variant, candidate.path, reason, is_chosen)
    # To the digits of evidence, where a chance is rounded down: both tell the same.
    cost, chance = in_units(candidate.cost_usd, candidate.chance)
    finish = candidate.finish_s
    # A refused candidate has none of them.
    if cost is None or finish is None or chance is None:
        return named
    return b"".join(
        (named, _COST, otlp.real(cost), _FINISH, otlp.real(seconds(finish)), _CHANCE,
         otlp.real(chance))
    )  # fmt: skip


# One fleet has few: a name for each option, path and reason.
@lru_cache(otlp.KEPT_MAX)
def _named(pool: str, variant: str, path: str, reason: str, is_chosen: bool) -> bytes:
    told: dict[str, AttributeValue] = {
        # Pages show the attributes of an event by name, in one line, until that is full.
        "shunter.candidate": f"{pool} {variant} {path}: {reason}",
        "shunter.candidate.reason": reason,
        "shunter.pool": pool,
        "shunter.model_variant": variant,
    }
    if is_chosen:
        told["shunter.candidate.is_chosen"] = True
    return otlp.attributes_of(otlp.OF_EVENT, told)


_COST = otlp.number_of(otlp.OF_EVENT, "shunter.candidate.cost_usd")
_FINISH = otlp.number_of(otlp.OF_EVENT, "shunter.candidate.finish_s")
_CHANCE = otlp.number_of(otlp.OF_EVENT, "shunter.candidate.chance")
