"""Details of a step's evidence beside the common fields, and what a request has used by it."""

from collections.abc import Sequence
from typing import TypedDict

from topics import (
    Batch,
    Candidate,
    Charge,
    Comparison,
    Cost,
    Envelope,
    Fallback,
    Footprint,
    Hold,
    Host,
    Placement,
    Profile,
    Shadow,
    Tag,
    TextDigest,
    Usage,
)
from topics.records.money import NANO, Amounts, Reservation, Spent
from topics.records.quote_terms import charge


class StepDetails(TypedDict, total=False):
    """The fields of a step's evidence beside the common ones; see ``Evidence``."""

    view_version: int
    tags: dict[str, Tag] | None
    profile: Profile | None
    inputs: object
    decided_with: str | None
    candidates: Sequence[Candidate]
    shadow: Shadow | None
    placement: Placement | None
    promised: Envelope | None
    held_promise: Envelope | None
    got: Envelope | None
    spent: Spent | None
    reserved: Reservation | None
    usage: Usage | None
    batch: Batch | None
    hold: Hold | None
    fallback: Fallback | None
    host: Host | None
    model_digest: str | None
    energy_wh: float | None
    footprint: Footprint | None
    assumed: bool
    request_digest: TextDigest | None
    response_digest: TextDigest | None
    comparison: Comparison | None
    charge: Charge | None
    reason: str | None
    message: str | None


def used_by(profile: Profile, end: StepDetails) -> Amounts:
    """Return all that a request used that ends so, its earlier tries included.

    Of one that took a quote it is what it is charged. Energy counts where a budget is in it.
    """
    tokens, nano_usd, nano_wh = 0, 0, round((end.get("energy_wh") or 0.0) * NANO)
    for each in (end.get("spent"), profile.spent):
        if each is not None:
            tokens, nano_usd = tokens + each.tokens, nano_usd + each.nano_usd
            nano_wh += each.nano_wh
    usage, got = end.get("usage"), end.get("got")
    if usage is not None:
        tokens += usage.input_tokens + usage.output_tokens
    if got is not None:
        nano_usd += round(got.cost_usd * NANO)
    charged = end.get("charge")
    nano_usd = nano_usd if charged is None else charged.charged_nano_usd
    return Amounts(1, tokens, nano_usd, nano_wh if profile.counts_energy else 0)


def charge_of_tries(profile: Profile) -> Charge | None:
    """Return what a request that took a quote pays for its tries, which gave no answer."""
    if profile.quote is None or profile.spent is None:
        return None
    return charge(profile.quote, profile.spent.nano_usd)


def cost_of_tries(profile: Profile) -> Cost | None:
    """Return the cost of a request whose tries gave no answer; None where there were none."""
    if profile.spent is None:
        return None
    paid = charge_of_tries(profile)
    if paid is None:
        return Cost(profile.spent.usd)
    return Cost(paid.charged_nano_usd / NANO, quoted_usd=paid.quoted_nano_usd / NANO)


def usage_of_tries(*tries: Spent | None) -> Usage | None:
    """Return the tokens of tries that gave no answer; None where they had none."""
    read = sum(each.input_tokens for each in tries if each is not None)
    written = sum(each.output_tokens for each in tries if each is not None)
    return Usage(read, written) if read or written else None
