"""Extensions: constraints and scorers that users write in Python, as plain functions.

They are handed in by whoever loads the policy, so that nothing is loaded here. They must be
deterministic: the same arguments give the same answer on any machine and at any time, else a
decision can't be made again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policies.config.options import Option
from topics import Profile

Constraint = Callable[[Profile, Option], str | None]
"""Returns None where the option may serve the request, else a short code that says why not."""

Scorer = Callable[[Profile, Option, float], float]
"""Returns the price to compare by, given the expected one, both in US dollars."""

FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Extension:
    """``name`` is that of its entry point, ``version`` that of the distribution it is from."""

    name: str
    version: str
    refuse: Constraint | None = None
    price: Scorer | None = None


def refused_by(extensions: Sequence[Extension], profile: Profile, option: Option) -> str | None:
    """Return ``extension:code`` of the first that refuses an option, None where none does.

    One that fails refuses: a constraint that can't be asked is not kept.
    """
    for extension in extensions:
        if extension.refuse is None:
            continue
        try:
            code = extension.refuse(profile, option)
        except Exception:  # noqa: BLE001 - no request may stop a partition
            code = FAILED
        if code is not None:
            return f"{extension.name}:{code}"
    return None


def priced_by(
    extensions: Sequence[Extension], profile: Profile, option: Option, price_usd: float
) -> float | str:
    """Return the price to compare by, or ``extension:failed`` of one that gave none.

    A price is a finite number that is not negative.
    """
    for extension in extensions:
        if extension.price is None:
            continue
        try:
            price_usd = float(extension.price(profile, option, price_usd))
        except Exception:  # noqa: BLE001 - no request may stop a partition
            price_usd = math.nan
        if not 0.0 <= price_usd < math.inf:
            return f"{extension.name}:{FAILED}"
    return price_usd
