"""What spans say: the messaging and GenAI conventions, and ``shunter.*`` where they have no name.

No text of a request or of an answer is ever among it.
"""

from collections.abc import Iterator
from functools import lru_cache

from opentelemetry.util.types import AttributeValue

from streams import otlp
from topics import Candidate, Evidence, Placement

Said = dict[str, AttributeValue]

# Of a fleet with more ways to serve a model, the others are counted only.
CANDIDATES_MAX = 10


def seconds(value: float) -> float:
    """Return a time as a person can read it: to the microsecond."""
    return round(value, 6)


def usd(value: float) -> float:
    """Return an amount as a person can read it: to the billionth."""
    return round(value, 9)


def messaging(topic: str, operation: str) -> Said:
    """Return what the conventions want of every span of a topic; ``send`` or ``process``."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": topic,
    }


def consumed(evidence: Evidence, group: str) -> Said:
    """Return what the conventions want of the span that processes a record."""
    source = evidence.source
    return {
        **messaging(source.topic, "process"),
        "messaging.destination.partition.id": str(source.partition),
        "messaging.kafka.offset": source.offset,
        "messaging.consumer.group.name": group,
    }


def request(evidence: Evidence) -> Said:
    """Return what says which request a span belongs to, and by what it was decided on."""
    told = {
        "messaging.message.id": evidence.request_id,
        "shunter.task": evidence.task,
        "shunter.tenant": evidence.tenant,
        "shunter.model": evidence.model,
        "shunter.attempt": evidence.attempt,
        "shunter.policy.version": evidence.policy_version,
        "shunter.fleet.version": evidence.fleet_version,
    }
    return {name: value for name, value in told.items() if value is not None}


def place(placement: Placement) -> Said:
    """Return where a request was sent."""
    told: Said = {
        "shunter.pool": placement.pool,
        "shunter.model_variant": placement.model_variant,
        "shunter.placement.path": placement.path,
    }
    if placement.batch_id is not None:
        told["shunter.batch.id"] = placement.batch_id
    if placement.fallbacks:
        told["shunter.fallback.pools"] = [f"{f.pool}: {f.reason}" for f in placement.fallbacks]
    return told


def hardware(placement: Placement) -> Said:
    """Return what a request ran on."""
    return place(placement) | {
        "shunter.device": placement.device,
        "shunter.precision": placement.precision,
        "shunter.region": placement.region,
    }


def decision(evidence: Evidence) -> Said:
    """Return what was decided, and why; what was promised is told by the first candidate."""
    told: Said = {"shunter.decision": evidence.step}
    if evidence.reason is not None:
        told["shunter.decision.reason"] = evidence.reason
    if evidence.placement is not None:
        told |= place(evidence.placement)
    if (left_out := len(evidence.candidates) - CANDIDATES_MAX) > 0:
        told["shunter.candidates.left_out"] = left_out
    return told


def candidates(evidence: Evidence) -> Iterator[bytes]:
    """Return an event for each candidate of a decision, encoded, the chosen one first."""
    target = None if evidence.profile is None else evidence.profile.target_chance
    # One that ended here has candidates, and none of them was chosen.
    is_choice = evidence.promised is not None and evidence.step in {"placed", "held", "released"}
    chosen = _chosen(evidence, target) if is_choice else None
    told = (
        _candidate(each, chosen, target, is_chosen=number == 0 and chosen is not None)
        for number, each in enumerate(evidence.candidates[:CANDIDATES_MAX])
    )
    return otlp.events("candidate", evidence.at, told)


def _chosen(evidence: Evidence, target: float | None) -> str | None:
    """Return why the first was chosen; the reason of a release is why it was made then."""
    if evidence.step != "released":
        return evidence.reason
    is_unlikely = any(_is_unlikely(each, target) for each in evidence.candidates[:1])
    return "best_chance" if is_unlikely else "cheapest_in_time"


def _passed_over(candidate: Candidate, chosen: str | None, target: float | None) -> str:
    """Return why a candidate that could serve was not chosen."""
    if chosen == "best_chance":
        return "lower_chance"
    return "chance_too_low" if _is_unlikely(candidate, target) else "costs_more"


def _is_unlikely(candidate: Candidate, target: float | None) -> bool:
    return target is not None and candidate.chance is not None and candidate.chance < target


def _candidate(
    candidate: Candidate, chosen: str | None, target: float | None, *, is_chosen: bool
) -> bytes:
    reason = chosen if is_chosen else candidate.refused or _passed_over(candidate, chosen, target)
    named = _named(candidate.pool, candidate.model_variant, candidate.path, reason or "", is_chosen)
    cost, finish, chance = candidate.cost_usd, candidate.finish_s, candidate.chance
    # What was refused has none of them.
    if cost is None or finish is None or chance is None:
        return named
    return b"".join(
        (named, _COST, otlp.real(usd(cost)), _FINISH, otlp.real(seconds(finish)), _CHANCE,
         otlp.real(round(chance, 4)))
    )  # fmt: skip


# Of one fleet there are not many: a name for each option, path and reason.
@lru_cache(otlp.KEPT_MAX)
def _named(pool: str, variant: str, path: str, reason: str, is_chosen: bool) -> bytes:
    told: Said = {
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
