"""Making a recorded decision again: the same inputs give the same decision on any machine."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from policies import Inputs, Options, Policy, decide_again
from shunter.console import UserError
from topics import BadRecordError, Evidence, decode, encode

# Made after the decision, from what others have had: the tenant's share.
BY_SHARE = "over_share"


@dataclass(frozen=True, slots=True)
class Replayed:
    """A decision made again. ``differences`` name field, recorded and found; none where alike."""

    step: str
    attempt: int
    at: float
    chosen: str
    differences: tuple[str, ...]


def replay_steps(steps: Sequence[Evidence], options: Options, policy: Policy) -> list[Replayed]:
    """Return each decision of a request, made again.

    Args:
        steps: its evidence.
        options: of the fleet that the evidence names.
        policy: that the evidence names.

    Raises:
        UserError: fleet or policy are others, or no step is a decision.
    """
    decisions = [step for step in steps if step.profile is not None and step.inputs is not None]
    if not decisions:
        raise UserError("no step of this request is a decision with its inputs")
    for step in decisions:
        for what, named, given in (
            ("policy", step.policy_version, policy.version),
            ("fleet", step.fleet_version, options.version),
        ):
            if named != given:
                raise UserError(
                    f"the decision {step.step!r} was made with {what} {named}, and this is {given};"
                    f" name the file of that time with --{what}"
                )
    return [_again(step, options, policy) for step in decisions]


def _again(step: Evidence, options: Options, policy: Policy) -> Replayed:
    if step.profile is None:
        raise ValueError("a step that was no decision")
    try:
        inputs = decode(Inputs, orjson.dumps(step.inputs))
    except BadRecordError as error:
        raise UserError(f"the inputs of {step.step!r} are of another version: {error}") from error
    found = decide_again(step.profile, inputs, options, policy, step.at)
    differences = []
    action = {"place": "placed", "hold": "held", "reject": "rejected", "expire": "expired"}
    wanted = action[found.action]
    if found.action == "reject" and step.profile.attempt > 1:
        wanted = "failed"
    if step.reason != BY_SHARE:
        if step.step != wanted:
            differences.append(f"step: recorded {step.step}, found {wanted}")
        if step.reason != found.reason:
            differences.append(f"reason: recorded {step.reason}, found {found.reason}")
        if step.promised != found.promised:
            differences.append(f"promised: recorded {step.promised}, found {found.promised}")
    recorded = [encode(each) for each in step.candidates]
    again = [encode(each) for each in found.candidates]
    if recorded != again:
        differences.append(f"candidates: {_first_unlike(recorded, again)}")
    best = found.candidates[0] if found.candidates else None
    chosen = "none" if best is None else f"{best.pool} {best.model_variant} {best.path}"
    return Replayed(step.step, step.profile.attempt, step.at, chosen, tuple(differences))


def _first_unlike(recorded: Sequence[bytes], found: Sequence[bytes]) -> str:
    if len(recorded) != len(found):
        return f"recorded {len(recorded)}, found {len(found)}"
    at = next(i for i, (a, b) in enumerate(zip(recorded, found, strict=True)) if a != b)
    return f"number {at + 1}: recorded {recorded[at].decode()}, found {found[at].decode()}"
