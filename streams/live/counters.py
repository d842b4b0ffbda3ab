"""Additive event counts, of a time slice or of all time."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from streams.metrics.quantile_sketch import QuantileSketch

OTHER = "(other)"
# Limit of distinct names from outside.
NAMES_MAX = 500


class _Mergeable(Protocol):
    def merge(self, other: Self, /) -> None: ...


M = TypeVar("M", bound=_Mergeable)


@dataclass(slots=True)
class ClassTally:
    """One workload class. ``judged`` counts the ends with a known SLO."""

    statuses: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    kept: int = 0
    ttft: QuantileSketch = field(default_factory=QuantileSketch)
    finish: QuantileSketch = field(default_factory=QuantileSketch)

    def merge(self, other: "ClassTally") -> None:
        """Add another's counts."""
        self.statuses.update(other.statuses)
        self.judged += other.judged
        self.kept += other.kept
        self.ttft.merge(other.ttft)
        self.finish.merge(other.finish)


@dataclass(slots=True)
class PoolTally:
    """The answers of a pool, by lane, and their cost."""

    direct: int = 0
    batch: int = 0
    fallbacks: int = 0
    usd: float = 0.0
    energy_wh: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def merge(self, other: "PoolTally") -> None:
        """Add another's counts."""
        self.direct += other.direct
        self.batch += other.batch
        self.fallbacks += other.fallbacks
        self.usd += other.usd
        self.energy_wh += other.energy_wh
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens


@dataclass(slots=True)
class GroupTally:
    """The releases of a batch group: requests, their batches, and the reasons."""

    released: int = 0
    batches: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "GroupTally") -> None:
        """Add another's counts."""
        self.released += other.released
        self.batches += other.batches
        self.reasons.update(other.reasons)


@dataclass(slots=True)
class LiveCounters:
    """All counts. Money in US dollars.

    ``compared`` requests were answered and might have been by a premium GPU; they cost
    ``compared_usd``, and there ``premium_usd``.
    """

    classes: dict[str, ClassTally] = field(default_factory=dict)
    pools: dict[str, PoolTally] = field(default_factory=dict)
    groups: dict[str, GroupTally] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    usd: float = 0.0
    compared: int = 0
    compared_usd: float = 0.0
    premium_usd: float = 0.0

    def of_class(self, task: str) -> ClassTally:
        """Return the counts of a class, to add to."""
        return self.classes.setdefault(name_in(self.classes, task), ClassTally())

    def of_pool(self, pool: str) -> PoolTally:
        """Return the counts of a pool, to add to."""
        return self.pools.setdefault(name_in(self.pools, pool), PoolTally())

    def of_group(self, group: str) -> GroupTally:
        """Return the counts of a batch group, to add to."""
        return self.groups.setdefault(name_in(self.groups, group), GroupTally())

    def merge(self, other: "LiveCounters") -> None:
        """Add another's counts."""
        _merge(self.classes, other.classes, ClassTally)
        _merge(self.pools, other.pools, PoolTally)
        _merge(self.groups, other.groups, GroupTally)
        self.statuses.update(other.statuses)
        self.refusals.update(other.refusals)
        self.dead_letters.update(other.dead_letters)
        self.duplicates += other.duplicates
        self.usd += other.usd
        self.compared += other.compared
        self.compared_usd += other.compared_usd
        self.premium_usd += other.premium_usd


def name_in(known: "dict[str, M] | Counter[str]", name: str) -> str:
    """Return a name, or the common one for all others once enough are known."""
    return name if name in known or len(known) < NAMES_MAX else OTHER


def _merge(into: dict[str, M], other: dict[str, M], empty: type[M]) -> None:
    for name, tally in other.items():
        into.setdefault(name_in(into, name), empty()).merge(tally)
