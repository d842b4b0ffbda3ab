"""A decision as evidence has it on its topic: rows of numbers whose columns this file names.

Written with names, a decision among 10 candidates takes 6 kB, most of it names and what stands
there twice. Here a candidate is a row of whole numbers over a table of pools and one of variants,
and what follows from another member isn't written. A record stays complete in itself: its reader
needs this schema, but neither a fleet nor another record. docs/evidence.md specifies it for others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import msgspec

from topics.records.decision_tables import Tables
from topics.records.placement import Candidate, Envelope
from topics.records.profile import Profile, Tag
from topics.records.quality import QualityCheck
from topics.wire.canonical_json import canonical

Estimates = TypeVar("Estimates", Candidate, Envelope)
Row = tuple[Any, ...]

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

_MOST = 1e6  # a row's numbers stay well below 2**53; what is more than this is written with names
# msgspec writes numbers between these as canonical JSON does, save whole ones.
_SMALL_MIN, _PLAIN_MIN, _PLAIN_MAX = 1e-6, 1e-5, 1e15
_NUMBERS, _INTEGER = frozenset({int, float}), frozenset({int})
NUMBER_OF_PATH = {name: number for number, name in enumerate(PATHS)}
_NUMBER_OF_SOURCE = {name: number for number, name in enumerate(TAG_SOURCES)}
_FOOTPRINT_MEMBERS = frozenset({"kv_bytes", "weights_bytes"})
# In place of what a profile doesn't imply: unlike any value.
_FOOTPRINT, _RISK = object(), object()


class UnfitError(ValueError):
    """A member does not fit into rows, and is written with names."""


class RecordedInputs(NamedTuple):
    """Inputs of a decision, or of a release where ``head`` is not None, in the form of evidence.

    ``pools`` are rows of the table of pools with their loads, each a row of ``LOAD``; ``head`` are
    rows of ``WAITING``, and ``credit`` is one of ``CREDIT``.
    """

    pools: Sequence[Any]
    arrivals_per_s: Any = None
    credit: Sequence[Any] | None = None
    head: Sequence[Sequence[Any]] | None = None
    waiting: int | None = None
    idle_arrivals_per_s: Any = None


class DecisionRows(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A decision as written. Members are in the order of canonical JSON, so that none is sorted."""

    arrivals_per_s: Any = None
    candidates: list[tuple[Any, ...]] | None = None
    credit: Sequence[Any] | None = None
    device: str | None = None
    head: Sequence[Sequence[Any]] | None = None
    idle_arrivals_per_s: Any = None
    pools: Sequence[Any] | None = None
    profile: Sequence[Any] | None = None
    promised: bool = False
    refused: list[tuple[Any, ...]] | None = None
    schema: int
    tags: list[Any] | None = None
    variants: Any = None
    waiting: int | None = None


def plain(value: float | None) -> Any:
    """Return a number in a form that msgspec writes as canonical JSON has it."""
    if value is None or type(value) is int:
        return value
    if _PLAIN_MIN <= value < _PLAIN_MAX:
        return value if value % 1.0 else int(value)
    if _SMALL_MIN <= value < _PLAIN_MIN:
        # The cost of a small request in US dollars: its digits are there, and its exponent is -6.
        digits = repr(value).partition("e")[0].replace(".", "")
        return msgspec.Raw(b"0.00000" + digits.encode("ascii"))
    return msgspec.Raw(canonical(value)) if value else 0


def trimmed(row: Sequence[Any], defaults: Sequence[Any]) -> Sequence[Any]:
    """Return a row without the defaults at its end."""
    end = len(row)
    while end and row[end - 1] == defaults[end - 1]:
        end -= 1
    return row[:end]


def candidate_rows(
    candidates: Sequence[Candidate], tables: Tables
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return the rows of the candidates with estimates, and of those that were refused.

    A chance is rounded down, so that none looks likely enough that was not.

    Raises:
        UnfitError: one lacks an estimate or has one beyond all bounds, a refused one stands before
            another, or a pool has two regions.
    """
    rows: list[tuple[Any, ...]] = []
    refused: list[tuple[Any, ...]] = []
    pools, regions = tables.pools, tables.regions
    variants, precisions = tables.variants, tables.precisions
    for each in candidates:
        name = each.pool
        pool = pools.get(name)
        if pool is None:
            pool = pools[name] = len(regions)
            regions.append(each.region)
        elif regions[pool] != each.region:
            raise UnfitError(f"pool {name} in two regions")
        name = each.model_variant
        variant = variants.get(name)
        if variant is None:
            variant = variants[name] = len(precisions)
            precisions.append(each.precision)
        elif precisions[variant] != each.precision:
            variant = tables.namesake(name, each.precision)
        path, code = NUMBER_OF_PATH[each.path], each.refused
        usd, ttft_s, finish_s = each.cost_usd, each.ttft_s, each.finish_s
        tpot_s, chance = each.tpot_s, each.chance
        if code is not None:
            if not usd is ttft_s is finish_s is tpot_s is chance is None:
                raise UnfitError("refused, with an estimate")
            refused.append((pool, variant, path, code))
            continue
        if refused or usd is None or finish_s is None:
            raise UnfitError("no estimate, or behind a refused one")
        # False of what is no number, too.
        if not -_MOST < usd + (ttft_s or 0.0) + finish_s + (tpot_s or 0.0) < _MOST:
            raise UnfitError("beyond all bounds")
        rows.append(
            (
                pool,
                variant,
                path,
                round(usd * NANO),
                None if ttft_s is None else round(ttft_s * MICRO),
                round(finish_s * MICRO),
                None if tpot_s is None else round(tpot_s * MICRO),
                None if chance is None else int(chance * MICRO),
            )
        )
    return rows, refused


def column_rows(
    places: Sequence[tuple[int, int, int]],
    figures: Sequence[tuple[float, float, float, float, float, float, float]],
    chances: Sequence[float],
    elapsed_s: float,
) -> list[Row]:
    """Return the rows of `candidate_rows` for candidates in columns, whose records are never made.

    Args:
        places: of each the numbers of pool, variant and path.
        figures: of each the cost in US dollars; TTFT, TPOT and finish in seconds from the
            decision; and three more that are not written.
        chances: of each.
        elapsed_s: time from ``created_at`` to the decision.

    Raises:
        UnfitError: one has an estimate beyond all bounds.
    """
    rows: list[Row] = []
    for place, found, chance in zip(places, figures, chances, strict=True):
        pool, variant, path = place
        usd, ttft_s, tpot_s, finish_s, _, _, _ = found
        ttft_s += elapsed_s
        finish_s += elapsed_s
        # False of what is no number, too.
        if not -_MOST < usd + ttft_s + tpot_s + finish_s < _MOST:
            raise UnfitError("beyond all bounds")
        rows.append(
            (
                pool,
                variant,
                path,
                round(usd * NANO),
                round(ttft_s * MICRO),
                round(finish_s * MICRO),
                round(tpot_s * MICRO),
                int(chance * MICRO),
            )
        )
    return rows


def refused_row(pool: int, variant: int, code: str) -> Row:
    """Return the row of an option that was refused, by the numbers of its pool and variant."""
    return pool, variant, 0, code


def rounded(found: Estimates) -> Estimates:
    """Return a candidate or envelope as it is read back from a row."""
    _, chance = in_units(None, found.chance)
    return replace(
        found,
        cost_usd=_whole(found.cost_usd, NANO),
        ttft_s=_whole(found.ttft_s, MICRO),
        finish_s=_whole(found.finish_s, MICRO),
        tpot_s=_whole(found.tpot_s, MICRO),
        chance=chance,
    )


def in_units(cost_usd: float | None, chance: float | None) -> tuple[float | None, float | None]:
    """Return a cost in whole nano-dollars, and a chance in whole parts per million."""
    return _whole(cost_usd, NANO), None if chance is None else int(chance * MICRO) / MICRO


def _whole(value: Any, unit: float) -> Any:
    """Return a value in whole units; None, and what is beyond all bounds, as it is."""
    if value is None or not -_MOST < value < _MOST:
        return value
    return round(value * unit) / unit


def profile_row(profile: Profile, at: float) -> Sequence[Any]:
    """Return the row of a profile; ``at`` is when the step was."""
    routed_at, quote = profile.routed_at, profile.quote
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
        profile.certain_tokens,
        profile.key,
        profile.bound_by or None,
        profile.any_quality or None,
        None if profile.quality is None else _quality_row(profile.quality),
        None if profile.price_factor == 1.0 else plain(profile.price_factor),
        None if quote is None else (quote.id, quote.nano_usd, plain(quote.chance)),
        plain(profile.max_gco2),
        profile.counts_energy or None,
        None if profile.prompts == 1 else profile.prompts,
        None if profile.replies == 1 else profile.replies,
    )
    end = len(rest)
    while end and rest[end - 1] is None:
        end -= 1
    return first + rest[:end]


def _quality_row(check: QualityCheck) -> Sequence[Any]:
    return (
        check.task,
        check.reference,
        check.compare,
        plain(check.within),
        plain(check.window_s),
        plain(check.deadline_s),
        check.reference_pool,
        check.pool,
        check.variant,
        check.of,
        check.asked,
        check.probe,
    )


def tag_rows(
    tags: Mapping[str, Tag], profile: Profile, tables: Tables
) -> tuple[list[Any], Mapping[str, Any] | None]:
    """Return the rows of the known tags, and the weights that the table of variants then has.

    A row is source and sureness, and the value if that isn't the one that the profile implies.
    """
    rows: list[Any] = []
    weights = None
    for tag, implied in zip(map(tags.get, TAGS), _implied_by(profile), strict=True):
        if tag is None:
            rows.append(None)
            continue
        sure, value = tag.confidence, tag.value
        if not _PLAIN_MIN <= sure < 1.0:
            sure = 1 if sure == 1.0 else plain(sure)
        if value == implied:
            rows.append((_NUMBER_OF_SOURCE[tag.source], sure))
            continue
        if implied is _FOOTPRINT:
            weights = _weights(value, tables)
            if weights is not None:
                value = value["kv_bytes"]
        written = plain(value) if type(value) in _NUMBERS else msgspec.Raw(canonical(value))
        rows.append((_NUMBER_OF_SOURCE[tag.source], sure, written))
    while rows and rows[-1] is None:
        rows.pop()
    return rows, weights


def _implied_by(profile: Profile) -> tuple[object, ...]:
    """Return the values that tags have by a profile, in the order of ``TAGS``."""
    direct, left_s = profile.latency_sensitive, profile.deadline - profile.created_at
    return (
        profile.task,
        profile.input_tokens,
        profile.output_tokens,
        profile.batchable,
        latency_of(direct, profile.ttft_s, profile.tpot_s, left_s),
        profile.regions,
        profile.precisions,
        _FOOTPRINT,
        _RISK,
    )


def latency_of(direct: object, ttft_s: object, tpot_s: object, left_s: float) -> dict[str, object]:
    """Return the value of the tag ``latency_sensitivity`` by the profile."""
    return {"direct": direct, "ttft_s": ttft_s, "tpot_s": tpot_s, "deadline_s": round(left_s, 3)}


def _weights(footprint: object, tables: Tables) -> Mapping[str, Any] | None:
    """Return the weights of a footprint, if they are those of the variants in the table."""
    if type(footprint) is not dict or footprint.keys() != _FOOTPRINT_MEMBERS:
        return None
    weights, kv_bytes = footprint["weights_bytes"], footprint["kv_bytes"]
    numbering = tables.numbering
    if type(kv_bytes) is not int or type(weights) is not dict:
        return None
    if numbering is not None and weights is numbering.weights:
        return numbering.weights
    if weights.keys() != tables.variants.keys():
        return None
    return weights if _INTEGER.issuperset(map(type, weights.values())) else None
