"""Reasons for which an option may not serve a request, as results and evidence name them."""

from typing import Literal, get_args

Refusal = Literal[
    "model_not_served",
    "operation_not_served",
    "region",
    "precision",
    "quality",
    "pool_not_allowed",
    "pool_excluded",
    "label",
    "variant",
    "context_too_long",
    "memory",
    "max_cost",
    "max_gco2",
    "energy_unknown",
    "lane",
    "never",
    "pool_unavailable",
    "circuit_open",
    "power_limit",
    "worker_misfit",
    "drifted",
]
"""Stable reason codes, about in the order in which an option meets them. The last five can pass
with time; the others can't."""

PASSING = ("pool_unavailable", "circuit_open", "power_limit", "worker_misfit", "drifted")
"""Those that pass with time, the one that is told of several first."""

TOO_LONG = frozenset({"context_too_long", "memory"})
"""A shorter request would be served where one of these is the only reason against a pool."""

RULED_OUT = frozenset(get_args(Refusal)).difference(PASSING, TOO_LONG)
"""What keeps a request from a pool however short it is; no server has failed on it there."""

TOO_MANY_ANSWERS = "too_many_answers"
"""A model server's: it writes no so many answers of one request, and another may."""
