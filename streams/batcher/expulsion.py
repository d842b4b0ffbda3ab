"""The end of a held request that gets no pool, and what kept it until then."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from policies import Expelled, Placer, Target
from policies.scoring.constraints import explain_each
from streams.cancellation.index import CANCELLED
from streams.engine.unexpected_errors import log_unexpected
from topics.iso_time import iso_time
from topics.records.placement import Path
from topics.records.refusal_codes import PASSING

Unanswered = Literal["expired", "rejected", "failed", "cancelled"]
_ENDS: dict[str, tuple[Unanswered, str]] = {
    "deadline_passed": ("expired", "the deadline passed while the request waited"),
    "pool_unavailable": ("rejected", "no pool took this request in time"),
    "cancelled": ("cancelled", CANCELLED),
    "outside_bound": (
        "rejected",
        "the policy in force binds the request to places of which it allows none",
    ),
    "refused": ("failed", "the topic of the pool refused the request; it is a dead letter"),
}
"""The end of a held request that is given up, and its message, by reason."""
_WAITED_IN_VAIN = {"deadline_passed", "pool_unavailable"}
_TURNS: dict[Path, str] = {"batch": "batch", "direct": "turn"}


@dataclass(frozen=True, slots=True)
class Expulsion:
    """The end of a held request: ``why`` has the reason code of each pool that doesn't take it."""

    status: Unanswered
    reason: str
    message: str
    why: dict[str, str]


def given_up(end: Expelled, placer: Placer, now: float) -> Expulsion:
    """Return the end of a held request; of one that waited in vain, with what kept it, by pool.

    A pool without a worker, one whose circuit is open and one without power are mended in different
    places. Where nothing of that kind keeps it, as when the company did not come with which it
    would have cost no more than its limit, there is no pool for it.
    """
    status, message = _ENDS[end.reason]
    if end.reason not in _WAITED_IN_VAIN:
        return Expulsion(status, end.reason, message, {})
    try:
        why = placer.refusals(end.member.profile, now)
    except Exception as error:  # noqa: BLE001 - a request ends, whatever is known of its wait
        log_unexpected(error, "it is not known what kept a request")
        message += "; what kept it is not known, since its check fails"
        return Expulsion(status, end.reason, message, {})
    kept, reason = [explain_each(list(why.items()))], str(end.reason)
    pools = [pool for pool in placer.situation.options.by_pool if pool not in why]
    if end.reason == "deadline_passed":
        kept.insert(0, _awaited(end.target, pools, now))
    elif not pools and not any(code in PASSING for code in why.values()):
        reason = "no_pool"
    told = "; ".join(filter(None, kept))
    return Expulsion(status, reason, f"{message}: {told}" if told else message, why)


def _awaited(target: Target | None, pools: Sequence[str], now: float) -> str:
    """Return what a request waited for at the pools that would take it; empty without any."""
    if target is None or target.option.pool not in pools:
        return f"{', '.join(pools)} would take it now" if pools else ""
    pool = target.option.pool
    if target.wait_until > now:
        return f"{pool} was to take it at a cheaper hour, {iso_time(target.wait_until)}"
    if target.is_crowded:
        return f"{pool} had no room for its batch"
    return f"{pool} was to take it, and its {_TURNS[target.path]} had not come"
