"""Replay of a recorded decision: the same inputs give the same decision on any machine.

Inputs are recorded to the last bit. Costs, latencies and chances are, or in whole nano-dollars,
microseconds and parts per million, and then held against what is found in these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson

from policies import Inputs, Options, Policy, ReleaseInputs, decide, release_again
from shunter.console import UserError
from topics import BadRecordError, Candidate, Envelope, Evidence, Profile, decode, encode
from topics.records.decision_rows import rounded

T = TypeVar("T")

# Added after the decision, from what others use: the tenant's share, or a budget.
BY_OTHERS = frozenset({"over_share", "budget"})


@dataclass(frozen=True, slots=True)
class Replayed:
    """A decision made again. ``differences`` has field, recorded and new value of each.

    ``request_id`` is another's if a batch was decided on with its first member.
    """

    request_id: str
    step: str
    attempt: int
    at: float
    chosen: str
    differences: tuple[str, ...]


def decisions_on(request_id: str, read: Callable[[str], Sequence[Evidence]]) -> list[Evidence]:
    """Return the evidence of a request, and of the releases decided on with another member.

    Args:
        request_id: its id.
        read: returns the evidence of a request.
    """
    steps = list(read(request_id))
    for step in tuple(steps):
        if step.decided_with is not None:
            others = read(step.decided_with)
            steps += [o for o in others if o.step == "released" and o.batch_id == step.batch_id]
    return steps


def replay_steps(
    steps: Sequence[Evidence],
    find: Callable[[str | None, str | None], tuple[Options, Policy]],
) -> list[Replayed]:
    """Return each decision of a request, made again.

    Args:
        steps: its evidence.
        find: returns the options of a fleet, and a policy, of the versions (fleet, policy).

    Raises:
        UserError: no step is a decision, or ``find`` raises it.
    """
    decisions = [step for step in steps if step.profile is not None and step.inputs is not None]
    if not decisions:
        raise UserError("no step of this request is a decision with its inputs")
    return [
        (_release_again if step.step == "released" else _decision_again)(
            step, *find(step.fleet_version, step.policy_version)
        )
        for step in decisions
    ]


def _inputs(kind: type[T], step: Evidence) -> tuple[Profile, T]:
    if step.profile is None:
        raise ValueError("a step that was no decision")
    try:
        return step.profile, decode(kind, orjson.dumps(step.inputs))
    except BadRecordError as error:
        raise UserError(f"the inputs of {step.step!r} are of another version: {error}") from error


def _release_again(step: Evidence, options: Options, policy: Policy) -> Replayed:
    profile, inputs = _inputs(ReleaseInputs, step)
    found = release_again(profile, inputs, options, policy, step.at)
    if found is None:
        return _replayed(step, (), ["step: recorded released, found that it should have waited"])
    size = 1 if step.batch is None else step.batch.size
    slack_s = None if step.hold is None else step.hold.slack_s
    promised = found.target.promise(profile, step.at)
    facts = [
        ("reason", step.reason, found.reason),
        ("members", size, len(found.members)),
        ("slack_s", slack_s, found.slack_s),
        ("promised", step.promised, _as_recorded(step.promised, promised)),
    ]
    return _replayed(step, found.target.candidates, _unlike(facts))


def _decision_again(step: Evidence, options: Options, policy: Policy) -> Replayed:
    profile, inputs = _inputs(Inputs, step)
    found = decide(profile, inputs, options, policy, step.at)
    action = {"place": "placed", "hold": "held", "reject": "rejected", "expire": "expired"}
    wanted = action[found.action]
    if found.action == "reject" and profile.attempt > 1:
        wanted = "failed"
    facts = [
        ("step", step.step, wanted),
        ("reason", step.reason, found.reason),
        ("promised", step.promised, _as_recorded(step.promised, found.promised)),
    ]
    differences = [] if step.reason in BY_OTHERS else _unlike(facts)
    return _replayed(step, found.candidates, differences)


def _unlike(facts: Sequence[tuple[str, object, object]]) -> list[str]:
    return [f"{name}: recorded {a}, found {b}" for name, a, b in facts if a != b]


def _as_recorded(recorded: Envelope | None, found: Envelope | None) -> Envelope | None:
    """Return what was found, in whole units if that is how the same was recorded."""
    if recorded is None or found is None or recorded == found:
        return found
    whole = rounded(found)
    return whole if whole == recorded else found


def _replayed(step: Evidence, found: Sequence[Candidate], differences: list[str]) -> Replayed:
    recorded = [encode(each) for each in step.candidates]
    again = [encode(each) for each in found]
    if recorded != again:
        whole = [encode(rounded(each)) for each in found]
        again = whole if recorded == whole else again
    if recorded != again:
        differences.append(f"candidates: {_first_unlike(recorded, again)}")
    best = found[0] if found else None
    chosen = "none" if best is None else f"{best.pool} {best.model_variant} {best.path}"
    return Replayed(step.request_id, step.step, step.attempt, step.at, chosen, tuple(differences))


def _first_unlike(recorded: Sequence[bytes], found: Sequence[bytes]) -> str:
    if len(recorded) != len(found):
        return f"recorded {len(recorded)}, found {len(found)}"
    at = next(i for i, (a, b) in enumerate(zip(recorded, found, strict=True)) if a != b)
    return f"number {at + 1}: recorded {recorded[at].decode()}, found {found[at].decode()}"
