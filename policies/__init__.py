"""Policies: map (request, fleet view, now) to a decision, and nothing else.

This package holds tags, declarations of fleet and policy, hard constraints, estimates, scoring,
batch windows, the model of an accelerator. All of it is pure: no I/O, no clock, no randomness of
its own, no logging; the same inputs give the same decision on any machine.
"""

from policies.batching.fair_queue import Member
from policies.batching.release import find_target
from policies.batching.windows import Expelled, Release, Target, Windows, windows_of
from policies.config.fleet import Fleet, Pool, parse_fleet
from policies.config.lint import review
from policies.config.options import Option, Options, compile_options, same_hardware
from policies.config.plugins import Extension, refused_by
from policies.config.policy import Policy, parse_policy
from policies.config.schema import DeclarationError, Problem
from policies.fleet_state.arrivals import Arrivals
from policies.fleet_state.view import FleetView, idle_view
from policies.placement.admission import Rates, Shares, share_out
from policies.placement.decide import Decision, decide
from policies.placement.decision_tags import decided_tags
from policies.placement.inputs import (
    Inputs,
    ReleaseInputs,
    inputs_of,
    release_again,
    release_inputs_of,
)
from policies.placement.placer import Placed, Placer
from policies.placement.retry import allow_again
from policies.placement.shadow import beside, decide_beside, release_beside
from policies.scoring.bindings import bind
from policies.scoring.situation import Situation, situation
from policies.tagging import Tagged, UnservableError, operation_of, tag

__all__ = [
    "Arrivals",
    "Decision",
    "DeclarationError",
    "Expelled",
    "Extension",
    "Fleet",
    "FleetView",
    "Inputs",
    "Member",
    "Option",
    "Options",
    "Placed",
    "Placer",
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
    "bind",
    "compile_options",
    "decide",
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
    "same_hardware",
    "share_out",
    "situation",
    "tag",
    "windows_of",
]
