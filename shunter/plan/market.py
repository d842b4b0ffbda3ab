"""The market of a plan: how many replicas of each pool, at which prices, within which power."""

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, NamedTuple

from pydantic import Field, field_validator

from policies import Fleet
from policies.config.fleet import Pool
from policies.config.hardware import NonNegative, Positive
from policies.config.schema import (
    Declaration,
    DeclarationError,
    Problem,
    did_you_mean,
    parse_declaration,
)

REPLICAS_MAX = 64
INTERRUPTIONS_MAX = 3600.0
"""An hour, of one replica."""

Counts = Mapping[str, int]
"""Replicas of each pool; a pool without any is not in the fleet."""

_Replicas = Annotated[int, Field(strict=True, ge=0, le=10_000)]


class Offer(Declaration):
    """Replicas at one price: on demand, reserved, or spot.

    `usd_per_hour` is for one device. `interruptions_per_hour` is how often one replica is taken
    away, with all that runs on it.
    """

    name: Annotated[str, Field(min_length=1, max_length=63)]
    usd_per_hour: NonNegative
    replicas_max: _Replicas = REPLICAS_MAX
    interruptions_per_hour: Annotated[float, Field(strict=True, ge=0, le=INTERRUPTIONS_MAX)] = 0.0


class Rentable(Declaration):
    """Offers for a pool; without any, its replicas as the fleet has them: price, interruptions."""

    replicas_max: _Replicas = REPLICAS_MAX
    offers: tuple[Offer, ...] = ()

    @field_validator("offers")
    @classmethod
    def _names_differ(cls, offers: tuple[Offer, ...]) -> tuple[Offer, ...]:
        if len({offer.name for offer in offers}) != len(offers):
            raise ValueError("names an offer twice")
        return offers


class SiteLimits(Declaration):
    """Limits of a region: power of its devices, and of those that need a liquid or air."""

    power_kw_max: Positive | None = None
    liquid_kw_max: NonNegative | None = None
    """Of the pools whose label `cooling` is `liquid`."""
    devices_max: _Replicas | None = None


class Market(Declaration):
    """The choices of a plan. Pools and regions that are not named have no limit of theirs."""

    pools: dict[str, Rentable] = Field(default_factory=dict)
    sites: dict[str, SiteLimits] = Field(default_factory=dict)

    def rentable(self, pool: str) -> Rentable:
        """Return what may be rented for a pool."""
        return self.pools.get(pool, Rentable())


class Rent(NamedTuple):
    """The cheapest way to rent the replicas of a pool.

    Attributes:
        usd_per_hour: of all of them.
        interruptions_per_hour: of one replica, on average.
        by_offer: replicas, by the offer's name.
    """

    usd_per_hour: float
    interruptions_per_hour: float
    by_offer: dict[str, int]


def parse_market(text: str, file: str, fleet: Fleet) -> Market:
    """Return the market in a YAML text.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    market = parse_declaration(text, file, Market)
    regions = {pool.region for pool in fleet.pools.values()}
    unknown = [
        Problem(file, f"pools.{name}", name, f"no such pool; {did_you_mean(name, fleet.pools)}")
        for name in market.pools
        if name not in fleet.pools
    ]
    unknown += [
        Problem(file, f"sites.{name}", name, f"no pool is there; {did_you_mean(name, regions)}")
        for name in market.sites
        if name not in regions
    ]
    unknown += [
        Problem(file, f"sites.{pool.region}.power_kw_max", name, "power_w of its device is missing")
        for name, pool in fleet.pools.items()
        if market.sites.get(pool.region, SiteLimits()).power_kw_max is not None
        and fleet.devices[pool.device].power_w is None
    ]
    if unknown:
        raise DeclarationError(unknown)
    return market


def offers_of(name: str, fleet: Fleet, market: Market) -> tuple[Offer, ...]:
    """Return the offers for a pool, the cheapest first. One that is paid by tokens has no rent."""
    pool, rentable = fleet.pools[name], market.rentable(name)
    usd_per_hour = 0.0 if pool.token_price is not None else pool.usd_per_hour
    if usd_per_hour is None:
        usd_per_hour = fleet.devices[pool.device].usd_per_hour
    declared = (
        Offer(
            name="on-demand",
            usd_per_hour=usd_per_hour,
            interruptions_per_hour=pool.interruptions_per_hour,
        ),
    )
    return tuple(sorted(rentable.offers or declared, key=lambda offer: offer.usd_per_hour))


def replicas_max(name: str, fleet: Fleet, market: Market) -> int:
    """Return the most replicas that a pool may have."""
    offered = sum(offer.replicas_max for offer in offers_of(name, fleet, market))
    return min(market.rentable(name).replicas_max, offered)


def rent(name: str, replicas: int, fleet: Fleet, market: Market) -> Rent:
    """Return how to rent so many replicas of a pool.

    Raises:
        ValueError: there are not so many.
    """
    if replicas > replicas_max(name, fleet, market):
        raise ValueError(f"{replicas} replicas of {name}")
    devices = devices_of(fleet.pools[name])
    left, usd, interruptions, by_offer = replicas, 0.0, 0.0, {}
    for offer in offers_of(name, fleet, market):
        taken = min(left, offer.replicas_max)
        if taken:
            by_offer[offer.name] = taken
        usd += taken * devices * offer.usd_per_hour
        interruptions += taken * offer.interruptions_per_hour
        left -= taken
    return Rent(usd, interruptions / replicas if replicas else 0.0, by_offer)


def usd_per_hour(counts: Counts, fleet: Fleet, market: Market) -> float:
    """Return the price of a fleet."""
    return sum(rent(name, count, fleet, market).usd_per_hour for name, count in counts.items())


def is_within(counts: Counts, larger: Counts) -> bool:
    """Return whether a fleet has no more replicas of any pool than another."""
    return all(larger.get(name, 0) >= count for name, count in counts.items())


def is_allowed(counts: Counts, fleet: Fleet, market: Market) -> bool:
    """Return whether there are so many replicas, and the sites bear them."""
    if any(count > replicas_max(name, fleet, market) for name, count in counts.items()):
        return False
    return all(
        sum(weight * counts.get(name, 0) for name, weight in weights.items()) <= limit + 1e-9
        for weights, limit in site_limits(fleet, market)
    )


def site_limits(fleet: Fleet, market: Market) -> list[tuple[dict[str, float], float]]:
    """Return the limits of all sites: what a replica of each pool takes of it, and the limit."""
    return list(chain.from_iterable(_of_site(name, fleet, market) for name in market.sites))


def _of_site(region: str, fleet: Fleet, market: Market) -> list[tuple[dict[str, float], float]]:
    site, found = market.sites[region], []
    pools = {name: pool for name, pool in fleet.pools.items() if pool.region == region}
    kw = {name: devices_of(pool) * _kw(pool, fleet) for name, pool in pools.items()}
    if site.power_kw_max is not None:
        found.append((kw, site.power_kw_max))
    if site.liquid_kw_max is not None:
        liquid = {n: kw[n] for n, pool in pools.items() if pool.labels.get("cooling") == "liquid"}
        found.append((liquid, site.liquid_kw_max))
    if site.devices_max is not None:
        devices = {name: float(devices_of(pool)) for name, pool in pools.items()}
        found.append((devices, float(site.devices_max)))
    return found


def _kw(pool: Pool, fleet: Fleet) -> float:
    return (fleet.devices[pool.device].power_w or 0.0) / 1000


def devices_of(pool: Pool) -> int:
    """Return the devices of one replica."""
    return pool.serves[0].tensor_parallel


def fleet_of(counts: Counts, fleet: Fleet, market: Market) -> Fleet:
    """Return the fleet with so many replicas of each pool, at the price of their rent."""
    pools = {}
    for name, count in counts.items():
        if count:
            devices = count * devices_of(fleet.pools[name])
            rented = rent(name, count, fleet, market)
            price = rented.usd_per_hour / devices
            changed = {
                "count": devices,
                "usd_per_hour": price,
                "interruptions_per_hour": rented.interruptions_per_hour,
            }
            if fleet.pools[name].token_price is not None:
                del changed["usd_per_hour"]
            pools[name] = fleet.pools[name].model_copy(update=changed)
    return fleet.model_copy(update={"pools": pools})
