"""Extensions: constraints and scorers that users write in Python, as plain functions.

The loader of the policy passes them in; nothing is loaded here. They must be deterministic: the
same arguments must give the same answer on any machine and at any time, otherwise a decision can't
be replayed.
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

CODE_CHARACTERS_MAX = 100


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension: ``name`` is its entry point's, ``version`` its distribution's."""

    name: str
    version: str
    refuse: Constraint | None = None
    price: Scorer | None = None


def refused_by(extensions: Sequence[Extension], profile: Profile, option: Option) -> str | None:
    """Return ``extension:code`` of the first that refuses an option, or None.

    An extension that fails refuses: its constraint can't be verified.
    """
    for extension in extensions:
        if extension.refuse is None:
            continue
        try:
            said = extension.refuse(profile, option)
            code = None if said is None else _code(said)
        except Exception:  # noqa: BLE001 - no request may stop a partition
            code = FAILED
        if code is not None:
            return f"{extension.name}:{code}"
    return None


def _code(said: object) -> str:
    """Return a refusal's code as evidence and results can have it."""
    code = str(said)
    return code if code.isprintable() and len(code) <= CODE_CHARACTERS_MAX else FAILED


def priced_by(
    extensions: Sequence[Extension], profile: Profile, option: Option, price_usd: float
) -> float | str:
    """Return the price to compare by, or ``extension:failed`` of one that gave no price.

    A price is a finite, non-negative number.
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
