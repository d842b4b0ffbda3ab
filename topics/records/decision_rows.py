"""A decision as evidence has it on its topic: rows of numbers whose columns this file names.

Written with names, a decision among 10 candidates takes 6 kB, most of it names and what stands
there twice. Here a candidate is a row of whole numbers over a table of pools and one of variants,
and what follows from another member isn't written. A record stays complete in itself: its reader
needs this schema, but neither a fleet nor another record. docs/evidence.md specifies it for others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from topics.records.placement import Candidate
from topics.records.profile import Profile, Tag
from topics.wire.canonical_json import canonical

SCHEMA = 1
PATHS = ("direct", "batch", "hold")
TAG_SOURCES = ("client", "policy", "estimate")
# A dollar in nano-dollars, a second in microseconds, and one in parts per million.
NANO, MICRO = 1e9, 1e6
TAGS = (
    "task",
    "context_length",
    "output_length",
    "batchability",
    "latency_sensitivity",
    "data_locality",
    "quantization_tolerance",
    "memory_footprint",
    "fallback_risk",
)
PROFILE = (
    "created_at",
    "deadline",
    "input_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "latency_sensitive",
    "batchable",
    "target_chance",
    "longest_wait_s",
    "window_s",
    "ingest_partition",
    "operation",
    "tier",
    "routed_at",
    "output_tokens_high",
    "regions",
    "precisions",
    "pools",
    "exclude_pools",
    "data_class",
    "labels",
    "max_cost_usd",
    "fallbacks",
)
# Of the members of a profile, those that stand in the record itself.
PROFILE_COMMON = ("tenant", "task", "model", "attempt")
LOAD = (
    "workers",
    "running",
    "queued",
    "backlog_s",
    "round_s",
    "kv_usage",
    "failure_rate",
    "variants",
)
# Of one variant in a pool; the last three are what was learned of it.
VARIANT_LOAD = ("running", "speed", "is_failing", "ttft_error", "tpot_error", "reuse")
CREDIT = ("pool", "variant", "tokens")
WAITING = (
    "id",
    "held_at",
    "created_at",
    "deadline",
    "window_s",
    "input_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "output_tokens_high",
)

# The members of a profile that have the values of these tags.
IMPLIED = {
    "task": "task",
    "context_length": "input_tokens",
    "output_length": "output_tokens",
    "batchability": "batchable",
    "data_locality": "regions",
    "quantization_tolerance": "precisions",
}
LATENCY, FOOTPRINT = "latency_sensitivity", "memory_footprint"

# Adding and subtracting it rounds a double below 2**51 to a whole number without a call.
_WHOLE = 1.5 * 2**52
# From just below a whole number on it is that number: a chance is rounded down, so that none looks
# likely enough that was not.
_DOWN = 0.4999999
# Between these msgspec writes numbers as canonical JSON has them, save whole ones.
_PLAIN_MIN, _PLAIN_MAX = 1e-5, 1e15
_NUMBERS = frozenset({int, float})
# Members of structures stand as declared, those of mappings by name.
_ENCODE = msgspec.json.Encoder(order="deterministic").encode


class UnfitError(ValueError):
    """A member does not fit into rows, and is written with names."""


class RecordedInputs(NamedTuple):
    """Inputs of a decision, or of a release where ``head`` is not None, in the form of evidence.

    ``loads`` by pool are rows of ``LOAD``, ``head`` rows of ``WAITING``, and ``credit`` is one of
    ``CREDIT``.
    """

    loads: Mapping[str, msgspec.Raw]
    arrivals_per_s: Any = None
    credit: Sequence[Any] | None = None
    head: Sequence[Sequence[Any]] | None = None
    waiting: int | None = None
    idle_arrivals_per_s: Any = None


class Decision(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What is written. Members stand in the order of canonical JSON, so that none is sorted."""

    arrivals_per_s: Any = None
    candidates: msgspec.Raw | None = None
    credit: Sequence[Any] | None = None
    device: str | None = None
    head: Sequence[Sequence[Any]] | None = None
    idle_arrivals_per_s: Any = None
    loads: list[msgspec.Raw | None] | None = None
    pools: list[tuple[str, str | None]] | None = None
    profile: Sequence[Any] | None = None
    promised: bool = False
    refused: list[tuple[Any, ...]] | None = None
    schema: int
    tags: list[Any] | None = None
    variants: list[tuple[Any, ...]] | None = None
    waiting: int | None = None


class Tables:
    """The names of a decision's pools and variants; a row has their numbers."""

    __slots__ = ("pools", "regions", "variants")

    def __init__(self) -> None:
        self.pools: dict[str, int] = {}
        self.regions: list[str | None] = []
        self.variants: dict[tuple[str, str], int] = {}

    def place(self, candidate: Candidate) -> tuple[int, int]:
        """Return the numbers of a candidate's pool and variant.

        Raises:
            UnfitError: the pool stands there in another region.
        """
        name, region = candidate.pool, candidate.region
        pool = self.pools.get(name)
        if pool is None:
            pool = self.pools[name] = len(self.regions)
            self.regions.append(region)
        elif self.regions[pool] != region:
            raise UnfitError(f"pool {name} in two regions")
        key = (candidate.model_variant, candidate.precision)
        variant = self.variants.get(key)
        if variant is None:
            variant = self.variants[key] = len(self.variants)
        return pool, variant

    def loads(self, loads: Mapping[str, msgspec.Raw]) -> list[msgspec.Raw | None]:
        """Return the loads in the order of the pools; one without a candidate is added to them."""
        for pool in loads:
            if pool not in self.pools:
                self.pools[pool] = len(self.regions)
                self.regions.append(None)
        return [loads.get(pool) for pool in self.pools]

    def rows_of_pools(self) -> list[tuple[str, str | None]] | None:
        """Return the table of pools."""
        return list(zip(self.pools, self.regions, strict=True)) or None

    def rows_of_variants(self, weights: Mapping[str, Any] | None) -> list[tuple[Any, ...]] | None:
        """Return the table of variants, with the bytes of their weights if these are given."""
        if weights is None:
            return list(self.variants) or None
        return [(name, precision, weights[name]) for name, precision in self.variants]


def plain(value: float | None) -> Any:
    """Return a number in a form that msgspec writes as canonical JSON has it."""
    if value is None or type(value) is int:
        return value
    if _PLAIN_MIN <= value < _PLAIN_MAX:
        return int(value) if value.is_integer() else value
    return msgspec.Raw(canonical(value)) if value else 0


def trimmed(row: Sequence[Any], defaults: Sequence[Any]) -> Sequence[Any]:
    """Return a row without the defaults at its end."""
    end = len(row)
    while end and row[end - 1] == defaults[end - 1]:
        end -= 1
    return row[:end]


def raw_row(row: Sequence[Any]) -> msgspec.Raw:
    """Return a row of plain values as it is written."""
    return msgspec.Raw(_ENCODE(row))


def candidate_rows(
    candidates: Sequence[Candidate], tables: Tables
) -> tuple[msgspec.Raw | None, list[tuple[Any, ...]] | None]:
    """Return the rows of the candidates with estimates, and of those that were refused.

    Raises:
        UnfitError: a refused one stands before another, or a number has more than 16 digits.
    """
    rows: list[tuple[Any, ...]] = []
    refused: list[tuple[Any, ...]] = []
    for each in candidates:
        pool, variant = tables.place(each)
        path = PATHS.index(each.path)
        if each.refused is not None:
            refused.append((pool, variant, path, each.refused))
            continue
        usd, ttft_s, finish_s = each.cost_usd, each.ttft_s, each.finish_s
        tpot_s, chance = each.tpot_s, each.chance
        rows.append(
            (
                pool,
                variant,
                path,
                None if usd is None else usd * NANO + _WHOLE - _WHOLE,
                None if ttft_s is None else ttft_s * MICRO + _WHOLE - _WHOLE,
                None if finish_s is None else finish_s * MICRO + _WHOLE - _WHOLE,
                None if tpot_s is None else tpot_s * MICRO + _WHOLE - _WHOLE,
                None if chance is None else chance * MICRO - _DOWN + _WHOLE - _WHOLE,
            )
        )
        if refused:
            raise UnfitError("a candidate behind a refused one")
    if not rows:
        return None, refused or None
    raw = _ENCODE(rows).replace(b".0", b"")
    if b"e" in raw:
        raise UnfitError("a number beyond what is exact")
    return msgspec.Raw(raw), refused or None


def profile_row(profile: Profile, at: float) -> Sequence[Any]:
    """Return the row of a profile; ``at`` is when the step was."""
    routed_at = profile.routed_at
    first = (
        plain(profile.created_at),
        plain(profile.deadline),
        profile.input_tokens,
        profile.output_tokens,
        plain(profile.ttft_s),
        plain(profile.tpot_s),
        profile.latency_sensitive,
        profile.batchable,
        plain(profile.target_chance),
        plain(profile.longest_wait_s),
        plain(profile.window_s),
        profile.ingest_partition,
        profile.operation,
        profile.tier,
    )
    rest = (
        None if routed_at == at else plain(routed_at),
        profile.output_tokens_high,
        profile.regions,
        profile.precisions,
        profile.pools,
        profile.exclude_pools or None,
        profile.data_class,
        profile.labels or None,
        plain(profile.max_cost_usd),
        [(each.pool, each.reason) for each in profile.fallbacks] or None,
    )
    end = len(rest)
    while end and rest[end - 1] is None:
        end -= 1
    return first + rest[:end]


def tag_rows(
    tags: Mapping[str, Tag], profile: Profile, tables: Tables
) -> tuple[list[Any], Mapping[str, Any] | None]:
    """Return the rows of the known tags, and the weights that the table of variants then has.

    A row is source and sureness, and the value if that isn't the one that the profile implies.
    """
    rows: list[Any] = []
    weights = None
    for name in TAGS:
        tag = tags.get(name)
        if tag is None:
            rows.append(None)
            continue
        source, value = TAG_SOURCES.index(tag.source), tag.value
        implied = IMPLIED.get(name)
        if implied is not None:
            is_implied = value == getattr(profile, implied)
        elif name == LATENCY:
            left_s = profile.deadline - profile.created_at
            wanted = latency_of(profile.latency_sensitive, profile.ttft_s, profile.tpot_s, left_s)
            is_implied = value == wanted
        else:
            is_implied = False
        if is_implied:
            rows.append((source, plain(tag.confidence)))
            continue
        if name == FOOTPRINT:
            weights = _weights(value, tables)
            value = value if weights is None else value["kv_bytes"]
        written = plain(value) if type(value) in _NUMBERS else msgspec.Raw(canonical(value))
        rows.append((source, plain(tag.confidence), written))
    while rows and rows[-1] is None:
        rows.pop()
    return rows, weights


def latency_of(direct: object, ttft_s: object, tpot_s: object, left_s: float) -> dict[str, object]:
    """Return the value of the tag ``latency_sensitivity`` by the profile."""
    return {"direct": direct, "ttft_s": ttft_s, "tpot_s": tpot_s, "deadline_s": round(left_s, 3)}


def _weights(footprint: object, tables: Tables) -> Mapping[str, Any] | None:
    """Return the weights of a footprint, if they are those of the variants in the table."""
    if type(footprint) is not dict or footprint.keys() != {"kv_bytes", "weights_bytes"}:
        return None
    weights, kv_bytes = footprint["weights_bytes"], footprint["kv_bytes"]
    names = [name for name, _ in tables.variants]
    is_fit = type(weights) is dict and type(kv_bytes) is int and weights.keys() == set(names)
    # A variant of two precisions stands there twice.
    is_fit = is_fit and len(names) == len(weights)
    return weights if is_fit and all(type(each) is int for each in weights.values()) else None
