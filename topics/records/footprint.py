"""The footprint: what a request costs in energy and emissions, and by which prices of the hour."""

from topics.records.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Footprint:
    """Prices of the time at which a request runs, and what it takes by them.

    Of a decision it is what was expected, of an executed request what it took. All are means from
    the first token to the finish; the fleet of the evidence's version has the series they are from.
    A value is None where nothing is declared that tells it.
    """

    usd_per_hour: float
    """Price of a device hour, energy that is paid on top included."""
    gco2_per_kwh: float | None = None
    energy_wh: float | None = None
    """Watt hours: device time at busy power, host included."""
    gco2: float | None = None
    """Grams of CO2."""
