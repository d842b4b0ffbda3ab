"""Places: what sites and regions bound and charge, and whether a pool's power and prices fit."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field

from policies.config.hardware import Device, NonNegative, Positive
from policies.config.prices import TokenPrice
from policies.config.schema import did_you_mean
from policies.config.series import Series
from policies.config.serving import ExtendedDeclaration

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""Pool names become parts of topic names, regions parts of labels."""
ByTime = NonNegative | Slug
"""A value, or the name of the series that has it by time."""
Found = tuple[tuple[str | int, ...], Any, str]
"""A problem: path below the fleet, value there, message."""


class Region(ExtendedDeclaration):
    """Price and emissions of energy in a region, for pools whose site says nothing else."""

    added: ClassVar[frozenset[str]] = frozenset({"usd_per_kwh", "gco2_per_kwh"})

    usd_per_kwh: ByTime | None = None
    """US dollars for a kWh, on top of the device hour; a number or the name of a series."""
    gco2_per_kwh: ByTime | None = None
    """Grams of CO2 emitted for a kWh, by convention with other gases as their equivalent."""


class Site(Region):
    """Pools with one supply of power. `power_kw_max` bounds what they draw together.

    Its prices and emissions come before those of the region.
    """

    added: ClassVar[frozenset[str]] = Region.added | {"power_kw_max"}

    power_kw_max: Positive | None = None


class _Placed(Protocol):
    """The part of a pool on which its place and its prices depend."""

    @property
    def device(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def site(self) -> str | None: ...
    @property
    def tariff(self) -> str | None: ...
    @property
    def token_price(self) -> TokenPrice | None: ...
    @property
    def usd_per_hour(self) -> float | None: ...
    @property
    def power_kw_max(self) -> float | None: ...


class _Places(Protocol):
    """The part of a fleet on which they depend."""

    @property
    def devices(self) -> Mapping[str, Device]: ...
    @property
    def pools(self) -> Mapping[str, _Placed]: ...
    @property
    def sites(self) -> Mapping[str, Site]: ...
    @property
    def regions(self) -> Mapping[str, Region]: ...
    @property
    def series(self) -> Mapping[str, Series]: ...


def of_place(fleet: _Places, pool: _Placed, field: str) -> float | str | None:
    """Return what site or region of a pool say in a field, the site's before the region's."""
    for place in (fleet.sites.get(pool.site or ""), fleet.regions.get(pool.region)):
        found = None if place is None else getattr(place, field)
        if found is not None:
            return float(found) if isinstance(found, int) else found
    return None


def place_problems(fleet: _Places) -> Iterator[Found]:
    """Yield what of power and prices can't be kept or counted, of pools, sites and regions."""
    for name in fleet.pools:
        yield from _power_problems(fleet, name)
        yield from _price_problems(fleet, name)
    places: tuple[tuple[str, Mapping[str, Region]], ...] = (
        ("sites", fleet.sites),
        ("regions", fleet.regions),
    )
    for kind, named in places:
        for name, place in named.items():
            for field in ("usd_per_kwh", "gco2_per_kwh"):
                value = getattr(place, field)
                if isinstance(value, str) and value not in fleet.series:
                    message = f"unknown series; {did_you_mean(value, fleet.series)}"
                    yield (kind, name, field), value, message


def _power_problems(fleet: _Places, name: str) -> Iterator[Found]:
    """Yield what of a pool's limits of power can't be kept."""
    pool, path = fleet.pools[name], ("pools", name)
    if pool.site is not None and pool.site not in fleet.sites:
        message = f"unknown site; {did_you_mean(pool.site, fleet.sites)}"
        yield (*path, "site"), pool.site, message
    device, site = fleet.devices.get(pool.device), fleet.sites.get(pool.site or "")
    limits = (None if site is None else site.power_kw_max, pool.power_kw_max)
    if device is not None and device.power_w is None and limits != (None, None):
        message = f"{pool.device} declares no power_w, so no limit can be kept"
        yield (*path, "device"), pool.device, message


def _price_problems(fleet: _Places, name: str) -> Iterator[Found]:
    """Yield what of a pool's prices by time can't be counted."""
    pool, path = fleet.pools[name], ("pools", name)
    device, tariff = fleet.devices.get(pool.device), pool.tariff
    if tariff is not None and tariff not in fleet.series:
        message = f"unknown series; {did_you_mean(tariff, fleet.series)}"
        yield (*path, "tariff"), tariff, message
    if pool.token_price is not None:
        if tariff is not None:
            message = "is paid by token_price: a tariff is of device hours"
            yield (*path, "tariff"), tariff, message
        return
    usd_per_kwh = of_place(fleet, pool, "usd_per_kwh")
    if device is None:
        return
    if usd_per_kwh is not None and device.power_w is None:
        message = f"{pool.device} declares no power_w, so its energy has no price (usd_per_kwh)"
        yield (*path, "device"), pool.device, message
    if tariff in fleet.series and not _least(fleet, tariff) + _least(fleet, usd_per_kwh):
        message = "has a value of 0: must be above 0 at all times, energy is told in times of it"
        yield (*path, "tariff"), tariff, message
    moves = (tariff, usd_per_kwh, of_place(fleet, pool, "gco2_per_kwh"))
    usd_per_hour = device.usd_per_hour if pool.usd_per_hour is None else pool.usd_per_hour
    if moves != (None, None, None) and not usd_per_hour:
        message = (
            "must be above 0 where a tariff, usd_per_kwh or gco2_per_kwh counts: prices and energy"
            " are told in times of it"
        )
        yield (*path, "usd_per_hour"), usd_per_hour, message


def _least(fleet: _Places, price: str | float | None) -> float:
    """Return the least value of a price that may be a series; 0 of none."""
    if isinstance(price, str):
        return fleet.series[price].least if price in fleet.series else 0.0
    return price or 0.0
