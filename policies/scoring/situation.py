"""The situation: everything that a decision depends on besides the request and the time."""

from dataclasses import dataclass

from policies.config.options import Options
from policies.config.policy import Policy
from policies.fleet_state.arrivals import MEMORY_S, Arrivals
from policies.fleet_state.view import FleetView


@dataclass(frozen=True, slots=True)
class Situation:
    """The options, their state (view, arrivals), and the policy.

    The view and the arrivals change as heartbeats and requests come; decisions only read them.
    """

    options: Options
    policy: Policy
    view: FleetView
    arrivals: Arrivals

    def under(self, options: Options, policy: Policy) -> "Situation":
        """Return this situation under another fleet and policy, with the same load and arrivals."""
        arrivals = self.arrivals.under(policy.windows.prior_rate_per_s, _memory_s(policy))
        return Situation(options, policy, self.view.under(options), arrivals)


def situation(options: Options, policy: Policy) -> Situation:
    """Return the initial situation, without known load and arrivals."""
    arrivals = Arrivals(policy.windows.prior_rate_per_s, _memory_s(policy))
    return Situation(options, policy, FleetView(options), arrivals)


def _memory_s(policy: Policy) -> float:
    """Return over how long rates are counted: no longer than half of the longest window.

    So a policy whose times are divided learns as much sooner.
    """
    windows_s = [each.window_s for each in policy.classes.values()]
    windows_s += [each.window_s or 0.0 for each in policy.tiers.values()]
    return min(MEMORY_S, max(windows_s) / 2) or MEMORY_S
