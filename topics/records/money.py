"""Money and energy: what work took, what budgets keep. Whole numbers, so that all sums agree."""

from topics.records.frozen import dataclass
from topics.records.integers import Integer

NANO = 1_000_000_000
"""Nano-dollars of a dollar, and nano-watt-hours of a watt hour."""


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of tries without an answer: price, tokens, device time in seconds, and energy.

    ``nano_wh`` is 0 where the energy of the device isn't known.
    """

    nano_usd: Integer
    input_tokens: Integer = 0
    output_tokens: Integer = 0
    device_s: float = 0.0
    nano_wh: Integer = 0

    @property
    def usd(self) -> float:
        """The price in US dollars."""
        return self.nano_usd / NANO

    @property
    def tokens(self) -> int:
        """The tokens that were read and written."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: "Spent | None") -> "Spent":
        """Return the sum of both."""
        if other is None:
            return self
        return Spent(
            self.nano_usd + other.nano_usd,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.device_s + other.device_s,
            self.nano_wh + other.nano_wh,
        )


@dataclass(frozen=True, slots=True)
class Account:
    """One window of one budget. ``rule`` is its place in the policy, such as ``tenants.acme``.

    ``owner`` is the tenant or key that it counts; of `default_tenant` each has an account of its
    own. ``number`` counts windows of ``window_s`` seconds since the epoch.
    """

    rule: str
    owner: str
    window_s: float
    number: Integer

    @property
    def ends_at(self) -> float:
        """The end of the window, epoch seconds."""
        return (self.number + 1) * self.window_s


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amounts of the four units that budgets are in."""

    requests: Integer = 0
    tokens: Integer = 0
    nano_usd: Integer = 0
    nano_wh: Integer = 0
    """Of requests with a budget in watt hours; of others 0."""

    def plus(self, other: "Amounts") -> "Amounts":
        """Return the sum."""
        return Amounts(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.nano_usd + other.nano_usd,
            self.nano_wh + other.nano_wh,
        )

    def minus(self, other: "Amounts") -> "Amounts":
        """Return the difference."""
        return Amounts(
            self.requests - other.requests,
            self.tokens - other.tokens,
            self.nano_usd - other.nano_usd,
            self.nano_wh - other.nano_wh,
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """Amounts that a request's accounts keep for it. ``home`` is the partition that has them."""

    home: Integer
    accounts: tuple[Account, ...]
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a reservation: what was used in fact."""

    reserved: Reservation
    used: Amounts


@dataclass(frozen=True, slots=True)
class BudgetState:
    """An account as its topic has it: kept for what has not ended, and used by what has."""

    account: Account
    reserved: Amounts
    used: Amounts
