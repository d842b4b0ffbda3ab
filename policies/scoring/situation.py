"""The situation: all that a decision depends on beside the request and the time."""

from dataclasses import dataclass

from policies.config.options import Options
from policies.config.policy import Policy
from policies.fleet_state.arrivals import Arrivals
from policies.fleet_state.view import FleetView


@dataclass(frozen=True, slots=True)
class Situation:
    """What may be chosen (options), how it stands (view, arrivals), and what is wanted (policy).

    The view and the arrivals change as heartbeats and requests come; decisions only read them.
    """

    options: Options
    policy: Policy
    view: FleetView
    arrivals: Arrivals

    def under(self, options: Options, policy: Policy) -> "Situation":
        """Return this situation under another fleet and policy: load and arrivals are as known."""
        arrivals = self.arrivals.under(policy.windows.prior_rate_per_s)
        return Situation(options, policy, self.view.under(options), arrivals)


def situation(options: Options, policy: Policy) -> Situation:
    """Return the situation in which nothing is known yet of load and arrivals."""
    return Situation(options, policy, FleetView(options), Arrivals(policy.windows.prior_rate_per_s))
