"""Reality: differences of the modelled fleet from its declaration, hidden from every policy."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from policies.config.fleet import Fleet
from policies.config.options import Option
from policies.config.schema import Declaration, parse_declaration
from policies.config.serving import Times
from policies.hardware.constants import AS_DECLARED, Factors, at_speed, corrected
from policies.hardware.roofline import Roofline

Factor = Annotated[float, Field(gt=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


class Outage(Declaration):
    """A pool serves nothing from ``from_s`` to ``to_s``, seconds since the trace's start.

    For ``notice_s`` before that its workers know: they drain, and take no new work.
    """

    pool: str
    from_s: Seconds
    to_s: Seconds
    notice_s: Seconds = 0.0

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.to_s <= self.from_s:
            raise ValueError("to_s must be after from_s")
        return self


class Reality(Declaration):
    """Differences from the declaration."""

    speed: dict[str, Factor] = Field(default_factory=dict)
    """By pool: how fast its devices are, 1 being as declared."""
    times: dict[str, Times] = Field(default_factory=dict)
    """By pool: what its devices take, by constant, over what is declared."""
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Standard deviation of ln(speed) among the replicas of a pool."""
    failure_rate: Share = 0.0
    """Share of tries that fail, anywhere between their first token and their last."""
    outages: tuple[Outage, ...] = ()
    preemptions_per_hour: dict[str, Annotated[float, Field(ge=0, le=3600)]] = Field(
        default_factory=dict
    )
    """By pool: how often a replica loses all that runs on it."""
    prefix_cache: bool = False
    """Replicas keep the keys and values of sessions in memory that is free, and use them again."""
    seed: Annotated[int, Field(ge=0)] = 0

    def factors(self, pool: str) -> Factors:
        """Return what a pool's devices take over what is declared."""
        return self.times[pool].factors if pool in self.times else AS_DECLARED

    def unknown_pools(self, fleet: Fleet) -> list[str]:
        """Return the pools named here that are missing in the fleet."""
        named = {
            *self.speed,
            *self.times,
            *self.preemptions_per_hour,
            *(o.pool for o in self.outages),
        }
        return sorted(named - fleet.pools.keys())


def parse_reality(text: str, file: str) -> Reality:
    """Return the reality in a YAML text.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    return parse_declaration(text, file, Reality)


def true_roofline(option: Option, reality: Reality) -> Roofline:
    """Return the roofline of an option's devices as they really are, without noise."""
    speed = reality.speed.get(option.pool, 1.0)
    return at_speed(corrected(option.roofline, reality.factors(option.pool)), speed)
