"""The bond of a request that took a quote, and what it is charged.

Money is whole nano-dollars, so that a price is the same number wherever it is written.
"""

from topics.records.frozen import dataclass
from topics.records.integers import Integer


@dataclass(frozen=True, slots=True)
class Quoted:
    """The promise to a request by the quote that it took.

    ``id`` names the quote, ``nano_usd`` is the most that it pays, and ``chance`` that of its answer
    by the deadline.
    """

    id: str
    nano_usd: Integer
    chance: float


@dataclass(frozen=True, slots=True)
class Charge:
    """The payment of a request that took a quote: its cost, and never more than was quoted."""

    quote: str
    quoted_nano_usd: int
    cost_nano_usd: int
    charged_nano_usd: int


def charge(quoted: Quoted, cost_nano_usd: int) -> Charge:
    """Return what is paid for a cost in nano-dollars."""
    return Charge(
        quoted.id, quoted.nano_usd, cost_nano_usd, min(max(0, cost_nano_usd), quoted.nano_usd)
    )
