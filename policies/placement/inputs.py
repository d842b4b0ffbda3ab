"""Inputs of a decision, small enough to record with it, and the replay of a release."""

from dataclasses import asdict, replace
from math import inf

from policies.batching.fair_queue import Member
from policies.batching.groups import group_in
from policies.batching.release import find_target
from policies.batching.windows import Release, windows_of
from policies.config.options import Options
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import PoolLoad
from policies.fleet_state.sessions import Credit
from policies.scoring.situation import Situation
from topics import Profile
from topics.records.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Inputs:
    """The part of a situation that a decision depends on, besides policy and fleet.

    ``loads`` are those of the pools that serve the request's model, ``arrivals_per_s`` is its
    group's rate, ``credit`` the tokens that its session may have cached.
    """

    loads: dict[str, PoolLoad]
    arrivals_per_s: float
    credit: Credit | None = None


@dataclass(frozen=True, slots=True)
class WaitingMember:
    """The values of a held member that a release depends on and that differ within a group."""

    id: str
    held_at: float
    created_at: float
    deadline: float
    window_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    output_tokens_high: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseInputs:
    """The part of a situation that a release depends on, besides policy, fleet and first member.

    ``loads`` are those of the pools that serve the model, ``head`` the examined members in release
    order, of ``waiting`` in all. In all other relevant values they equal the first, whose profile
    is in the same evidence. ``idle_arrivals_per_s`` is the rate of their group if their target
    pool was idle.
    """

    loads: dict[str, PoolLoad]
    head: tuple[WaitingMember, ...]
    waiting: int
    idle_arrivals_per_s: float | None = None


def inputs_of(profile: Profile, situation: Situation, now: float) -> Inputs:
    """Return the inputs of a decision made now, to be recorded before the view changes.

    Args:
        profile: profile of the request.
        situation: situation of the decision.
        now: epoch seconds.
    """
    group = group_in(profile, situation.options, situation.policy)
    return Inputs(
        _loads(profile.model, situation),
        situation.arrivals.rate_per_s(group, now),
        situation.view.sessions.credit(profile, now),
    )


def release_inputs_of(release: Release, situation: Situation) -> ReleaseInputs:
    """Return the inputs of a release just judged, before the view counts it."""
    profile = release.head[0].profile
    head = tuple(_waiting(member) for member in release.head)
    loads = {pool: load.copied() for pool, load in _loads(profile.model, situation).items()}
    return ReleaseInputs(loads, head, release.waiting, release.target.idle_arrivals_per_s)


def release_again(
    first: Profile, inputs: ReleaseInputs, options: Options, policy: Policy, now: float
) -> Release | None:
    """Return the release that these inputs lead to, or None.

    Args:
        first: the recorded profile of the first member.
        inputs: the recorded inputs.
        options: options of the fleet of the recorded version.
        policy: policy of the recorded version.
        now: time of the judgement, epoch seconds.
    """
    head = [_member(first, waiting) for waiting in inputs.head]
    # Where no rate was written down, none played a part; with this one waiting always pays.
    rate_per_s = inf if inputs.idle_arrivals_per_s is None else inputs.idle_arrivals_per_s
    target = find_target(head, inputs.loads, rate_per_s, options, policy, now)
    if target is None:
        return None
    found = windows_of(policy).judge(head, inputs.waiting, target, now)
    return found if isinstance(found, Release) else None


def _waiting(member: Member) -> WaitingMember:
    profile = member.profile
    return WaitingMember(
        profile.id,
        member.held_at,
        profile.created_at,
        profile.deadline,
        profile.window_s,
        profile.input_tokens,
        profile.output_tokens,
        profile.ttft_s,
        profile.tpot_s,
        profile.output_tokens_high,
    )


def _member(first: Profile, waiting: WaitingMember) -> Member:
    own = asdict(waiting)
    held_at = own.pop("held_at")
    return Member(replace(first, **own), "", held_at, 0)


def _loads(model: str, situation: Situation) -> dict[str, PoolLoad]:
    """Return the loads of the pools that serve a model; they change with the view."""
    loads = situation.view.loads()
    options = situation.options.by_model.get(model, ())
    return {o.pool: loads[o.pool] for o in options if o.pool in loads}
