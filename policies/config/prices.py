"""Prices by tokens, as a vendor's API has them: whole nano-dollars, the same on every machine."""

from typing import Annotated, NamedTuple, Self

from pydantic import Field

from policies.config.schema import Declaration
from topics.records.money import NANO

_FEMTO_OF_NANO = 1_000_000

Usd = Annotated[float, Field(strict=True, ge=0, le=1e6)]


class UsdPerMillion(Declaration):
    """US dollars for a million tokens. Without `cached_input`, cached ones cost as others do."""

    input: Usd
    output: Usd
    cached_input: Usd | None = None


class TokenPrice(Declaration):
    """The price of a pool's work, in place of the time of its devices.

    `request_usd` comes on top of the tokens of each request, and `minimum_usd` is the least that
    one costs.
    """

    usd_per_million: UsdPerMillion
    request_usd: Usd = 0.0
    minimum_usd: Usd = 0.0


class TokenRates(NamedTuple):
    """A token price in whole numbers: femto-dollars for a token, nano-dollars for a request."""

    input_femto: int
    cached_femto: int
    output_femto: int
    request_nano: int
    minimum_nano: int

    @classmethod
    def of(cls, price: TokenPrice) -> Self:
        """Return the rates of a declared price."""
        each = price.usd_per_million
        cached = each.input if each.cached_input is None else each.cached_input
        return cls(
            # A dollar for a million tokens is 1e9 femto-dollars for one.
            input_femto=round(each.input * NANO),
            cached_femto=round(cached * NANO),
            output_femto=round(each.output * NANO),
            request_nano=nano_of(price.request_usd),
            minimum_nano=nano_of(price.minimum_usd),
        )

    def nano_usd(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """Return the price of one request in nano-dollars, half of one rounded up.

        ``cached_tokens`` are those of its input that the server had already.
        """
        cached = min(cached_tokens, input_tokens)
        femto = (input_tokens - cached) * self.input_femto + cached * self.cached_femto
        femto += output_tokens * self.output_femto
        nano = (femto + _FEMTO_OF_NANO // 2) // _FEMTO_OF_NANO
        return max(self.minimum_nano, self.request_nano + nano)


def nano_of(usd: float) -> int:
    """Return US dollars in whole nano-dollars, or watt hours in whole nano-watt-hours."""
    return round(usd * NANO)
