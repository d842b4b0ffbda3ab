"""Tariffs: what a device hour costs and emits by time, and how far a decision looks ahead."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from policies.config.curves import Curve, horizon, mean

SECONDS_PER_HOUR = 3600.0
WATTS_PER_KW = 1000.0
CHANGES_MAX = 400
"""A decision looks at no more changes ahead: more than three days of quarters of an hour."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices and emissions that move with time, of the devices of a pool.

    ``declared_usd`` is what the fleet says of a device hour, and the price where ``usd_per_hour``
    is None. ``busy_kw`` is what a device draws with its share of the host, None where unknown: then
    nothing is known of its energy. ``usd_per_kwh`` is paid on top of the device hour.
    """

    declared_usd: float
    busy_kw: float | None = None
    usd_per_hour: Curve | None = None
    usd_per_kwh: Curve | None = None
    gco2_per_kwh: Curve | None = None

    def usd(self, begin: float, end: float, now: float | None = None) -> float:
        """Return the mean price of a device hour over a span, epoch seconds, see `mean`."""
        curve = self.usd_per_hour
        found = self.declared_usd if curve is None else mean(curve, begin, end, now)
        if self.usd_per_kwh is not None and self.busy_kw is not None:
            found += self.busy_kw * mean(self.usd_per_kwh, begin, end, now)
        return found

    def factor(self, begin: float, end: float, now: float | None = None) -> float:
        """Return the price over a span in times the declared one, by which options count."""
        return self.usd(begin, end, now) / self.declared_usd

    def intensity(self, begin: float, end: float, now: float | None = None) -> float | None:
        """Return the mean grams of CO2 per kWh over a span; None where unknown."""
        curve = self.gco2_per_kwh
        return None if curve is None else mean(curve, begin, end, now)

    def changes(self, after: float, until: float, now: float | None = None) -> Iterator[float]:
        """Yield the times in (after, until] at which price or intensity may change.

        Those that are not known yet at ``now`` are left out, and so is all after `CHANGES_MAX`.
        """
        curves = [c for c in (self.usd_per_hour, self.usd_per_kwh, self.gco2_per_kwh) if c]
        known = [horizon(curve, now) for curve in curves]
        at = after
        for _ in range(CHANGES_MAX):
            coming = (curve.next_change(at) for curve in curves)
            at = min((c for c, k in zip(coming, known, strict=True) if c <= k), default=inf)
            if at > until:
                return
            yield at

    def factors(self, begin: float, end: float) -> Iterator[float]:
        """Yield all factors of a span, of all that is declared."""
        at = begin
        while at <= end:
            yield self.factor(at, at)
            at = next(self.changes(at, end), inf)
