"""What a decision was made on, small enough to be kept with it, and the decision made again."""

from collections.abc import Mapping

from policies.arrivals import Arrivals
from policies.decide import Decision, decide
from policies.groups import group_of
from policies.options import Options
from policies.policy import Policy
from policies.situation import Situation
from policies.standing import PoolLoad
from policies.view import FleetView
from topics import Profile
from topics.records import dataclass


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of a situation, what a decision on one request depends on beside policy and fleet.

    ``loads`` are those of the pools that serve its model, ``arrivals_per_s`` those of its group.
    """

    loads: dict[str, PoolLoad]
    arrivals_per_s: float


def inputs_of(profile: Profile, situation: Situation, now: float) -> Inputs:
    """Return what a decision made now depends on, to be written down before the view changes.

    Args:
        profile: of the request.
        situation: that the decision is made in.
        now: epoch seconds.
    """
    options = situation.options.by_model.get(profile.model, ())
    loads = situation.view.loads()
    group = group_of(profile, situation.policy.windows.length_buckets_tokens)
    return Inputs(
        {o.pool: loads[o.pool] for o in options if o.pool in loads},
        situation.arrivals.rate_per_s(group, now),
    )


def decide_again(
    profile: Profile, inputs: Inputs, options: Options, policy: Policy, now: float
) -> Decision:
    """Return the decision that these inputs lead to.

    Args:
        profile: as it was recorded.
        inputs: as they were recorded.
        options: of the fleet of the recorded version.
        policy: of the recorded version.
        now: when it was made, epoch seconds.
    """
    view = _RecordedView(options, inputs.loads)
    arrivals = _RecordedArrivals(inputs.arrivals_per_s)
    return decide(profile, Situation(options, policy, view, arrivals), now)


class _RecordedView(FleetView):
    def __init__(self, options: Options, loads: Mapping[str, PoolLoad]) -> None:
        super().__init__(options)
        self._loads = dict(loads)


class _RecordedArrivals(Arrivals):
    def rate_per_s(self, group: str, now: float) -> float:
        return self._prior_per_s
