"""The tables of a decision in evidence: the names that its rows have the numbers of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

# Members of structures stand as declared, those of mappings by name.
_ENCODE = msgspec.json.Encoder(order="deterministic").encode


def raw_row(row: Sequence[Any]) -> msgspec.Raw:
    """Return a row of plain values as it is written."""
    return msgspec.Raw(_ENCODE(row))


class Numbering:
    """The tables of pools and variants of all that serve one model, made once for its decisions.

    Args:
        pools: name and region of each.
        variants: name and precision of each.
        weights_bytes: of each variant.
    """

    __slots__ = (
        "has_namesakes",
        "pools",
        "precisions",
        "regions",
        "rows",
        "variant_names",
        "variants",
        "weights",
    )

    def __init__(
        self,
        pools: Iterable[tuple[str, str]],
        variants: Iterable[tuple[str, str]],
        weights_bytes: dict[str, int],
    ) -> None:
        regions, precisions = dict(pools), dict(variants)
        self.pools = {name: at for at, name in enumerate(regions)}
        self.regions: list[str | None] = list(regions.values())
        self.variants = {name: at for at, name in enumerate(precisions)}
        self.variant_names = frozenset(precisions)
        self.precisions = list(precisions.values())
        self.has_namesakes = len(set(variants)) > len(precisions)
        self.weights: Mapping[str, int] = weights_bytes
        each = [(name, precisions[name], weight) for name, weight in weights_bytes.items()]
        self.rows = raw_row(each)


class Tables:
    """The names of a decision's pools and variants; a row has their numbers."""

    __slots__ = ("namesakes", "numbering", "pools", "precisions", "regions", "variants")

    def __init__(self) -> None:
        self.pools: dict[str, int] = {}
        self.regions: list[str | None] = []
        self.variants: dict[str, int] = {}
        self.precisions: list[str] = []
        self.namesakes: dict[tuple[str, str], int] = {}
        self.numbering: Numbering | None = None

    def take(self, numbering: Numbering) -> None:
        """Be these tables, while they are empty."""
        self.numbering = numbering
        self.pools, self.regions = numbering.pools, numbering.regions
        self.variants, self.precisions = numbering.variants, numbering.precisions

    def add(self, pools: Mapping[str, object]) -> None:
        """Add the pools that have no candidate."""
        if not pools.keys() <= self.pools.keys():
            # Those of a model are shared by all its decisions.
            self.pools, self.regions = dict(self.pools), list(self.regions)
            for name in pools:
                if name not in self.pools:
                    self.pools[name] = len(self.regions)
                    self.regions.append(None)

    def namesake(self, name: str, precision: str) -> int:
        """Return the number of a variant whose name another has too, in another precision."""
        number = self.namesakes.setdefault((name, precision), len(self.precisions))
        if number == len(self.precisions):
            self.precisions.append(precision)
        return number

    def rows_of_pools(self) -> Sequence[tuple[str, str | None]]:
        """Return the table of pools, without loads."""
        return list(zip(self.pools, self.regions, strict=True))

    def rows_of_variants(self, weights: Mapping[str, Any] | None) -> Any:
        """Return the table of variants, with the bytes of their weights if these are given."""
        names: Iterable[str] = self.variants
        if self.namesakes:
            numbered = [(at, name) for name, at in self.variants.items()]
            numbered += [(at, name) for (name, _), at in self.namesakes.items()]
            names = [name for _, name in sorted(numbered)]
        if weights is None:
            return list(zip(names, self.precisions, strict=True)) or None
        if self.numbering is not None and weights is self.numbering.weights:
            return self.numbering.rows
        return [(n, p, weights[n]) for n, p in zip(names, self.precisions, strict=True)]
