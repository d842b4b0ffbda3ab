"""Where a request should go: (request, fleet view, now) to decision, and nothing else.

Belongs here: tags, declarations of fleet and policy, hard constraints, estimates, scoring, batch
windows, the model of an accelerator. All of it pure: no I/O, no clock, no randomness of its own,
no logging; the same inputs give the same decision on any machine.
"""

from policies.admission import Rates, Shares, share_out
from policies.arrivals import Arrivals
from policies.decide import Decision, decide
from policies.declaration import DeclarationError, Problem
from policies.extension import Extension, refused_by
from policies.fleet import Fleet, Pool, parse_fleet
from policies.options import Option, Options, compile_options
from policies.policy import Policy, parse_policy
from policies.recorded import (
    Inputs,
    ReleaseInputs,
    decide_again,
    inputs_of,
    release_again,
    release_inputs_of,
)
from policies.release import find_target
from policies.review import review
from policies.risk import decided_tags
from policies.second_chance import allow_again
from policies.shadow import beside, decide_beside, release_beside
from policies.situation import Situation, situation
from policies.tags import Tagged, UnservableError, operation_of, tag
from policies.turns import Member
from policies.view import FleetView, idle_view
from policies.windows import GivenUp, Release, Target, Windows, windows_of

__all__ = [
    "Arrivals",
    "Decision",
    "DeclarationError",
    "Extension",
    "Fleet",
    "FleetView",
    "GivenUp",
    "Inputs",
    "Member",
    "Option",
    "Options",
    "Policy",
    "Pool",
    "Problem",
    "Rates",
    "Release",
    "ReleaseInputs",
    "Shares",
    "Situation",
    "Tagged",
    "Target",
    "UnservableError",
    "Windows",
    "allow_again",
    "beside",
    "compile_options",
    "decide",
    "decide_again",
    "decide_beside",
    "decided_tags",
    "find_target",
    "idle_view",
    "inputs_of",
    "operation_of",
    "parse_fleet",
    "parse_policy",
    "refused_by",
    "release_again",
    "release_beside",
    "release_inputs_of",
    "review",
    "share_out",
    "situation",
    "tag",
    "windows_of",
]
