"""A decision read from its rows: its members again by the names that evidence has them under.

What is read may be anybody's: each index and each length is checked.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Annotated, Any

import msgspec

from topics.records.decision_columns import (
    CREDIT,
    LOAD,
    NO_LOAD,
    NO_WISH,
    PROFILE,
    PROFILE_COMMON,
    QUALITY,
    QUOTE,
    VARIANT_LOAD,
    WAITING,
)
from topics.records.decision_rows import (
    FOOTPRINT,
    IMPLIED,
    LATENCY,
    MICRO,
    NANO,
    PATHS,
    SCHEMA,
    TAG_SOURCES,
    TAGS,
    latency_of,
)

# What is not written at the end of a row.
_NO_LOAD = dict(zip(LOAD, NO_LOAD, strict=True))
_NO_WISH = dict(zip(WAITING[-len(NO_WISH) :], NO_WISH, strict=True))
Index = Annotated[int, msgspec.Meta(ge=0)]


class CandidateRow(msgspec.Struct, array_like=True, gc=False):
    """A candidate with its estimates, or None where there is none."""

    pool: Index
    variant: Index
    path: Index
    cost_nano: int
    ttft_us: int | None
    finish_us: int
    tpot_us: int | None = None
    chance_ppm: int | None = None

    @property
    def cost_usd(self) -> float:
        """US dollars."""
        return self.cost_nano / NANO


class RefusedRow(msgspec.Struct, array_like=True, gc=False):
    """A candidate that was refused, and why."""

    pool: Index
    variant: Index
    path: Index
    refused: str

    @property
    def cost_usd(self) -> None:
        """None, since a refused one has no estimates."""
        return


class PoolRow(msgspec.Struct, array_like=True, gc=False):
    """A pool; its region is known where it has a candidate."""

    name: str
    region: str | None = None


class _LoadedPoolRow(PoolRow, array_like=True, gc=False):
    """A pool with its load, where there are inputs; few readers need that."""

    load: tuple[Any, ...] | None = None


class VariantRow(msgspec.Struct, array_like=True, gc=False):
    """A model variant, and the bytes of its weights where the tags have them."""

    name: str
    precision: str
    weights_bytes: int | None = None


class RowsOfDecision(msgspec.Struct, kw_only=True, gc=False):
    """The part of a decision that tells where a request went, and what else there was."""

    candidates: tuple[CandidateRow, ...] = ()
    device: str | None = None
    pools: tuple[PoolRow, ...] = ()
    promised: bool = False
    refused: tuple[RefusedRow, ...] = ()
    schema: int
    variants: tuple[VariantRow, ...] = ()

    def check(self) -> None:
        """Check that each row names a pool, a variant and a path.

        Raises:
            ValueError: one does not, or the schema is another.
        """
        if self.schema != SCHEMA:
            raise ValueError(f"a decision of schema {self.schema}: this version knows {SCHEMA}")
        pools, variants, paths = len(self.pools), len(self.variants), len(PATHS)
        rows: tuple[CandidateRow | RefusedRow, ...] = (*self.candidates, *self.refused)
        for each in rows:
            if each.pool >= pools or each.variant >= variants or each.path >= paths:
                raise ValueError("a candidate names no row of its tables")
        if (self.promised or self.device is not None) and not self.candidates:
            raise ValueError("a choice without a candidate")


class _Decision(RowsOfDecision, kw_only=True, gc=False):
    arrivals_per_s: float | None = None
    credit: tuple[str, str, int] | None = None
    head: tuple[tuple[Any, ...], ...] | None = None
    idle_arrivals_per_s: float | None = None
    pools: tuple[_LoadedPoolRow, ...] = ()
    profile: tuple[Any, ...] | None = None
    tags: tuple[tuple[Any, ...] | None, ...] | None = None
    waiting: int | None = None


def with_names(told: Any) -> Any:
    """Return parsed evidence with the members of its decision under their own names.

    Anything without a decision in rows is returned as it is.

    Raises:
        ValueError: the rows are none of this schema.
    """
    if not isinstance(told, dict) or not isinstance(told.get("decision"), dict):
        return told
    try:
        found = msgspec.convert(told["decision"], _Decision)
    except msgspec.ValidationError as error:
        raise ValueError(f"decision: {error}") from error
    found.check()
    named: dict[str, Any] = {name: each for name, each in told.items() if name != "decision"}
    if found.candidates or found.refused:
        named["candidates"] = [*(_candidate(found, row) for row in found.candidates)]
        named["candidates"] += [_refused(found, row) for row in found.refused]
    if found.promised:
        named["promised"] = _promise(found.candidates[0])
    if found.device is not None:
        named["placement"] = _placement(found, told)
    if found.profile is not None:
        named["profile"] = profile = _profile(found.profile, told)
        if found.tags is not None:
            named["tags"] = _tags(found.tags, found, profile)
    inputs = _inputs(found)
    if inputs is not None:
        named["inputs"] = inputs
    return named


def _whole(millionths: int | None) -> float | None:
    return None if millionths is None else millionths / MICRO


def _place(found: RowsOfDecision, row: CandidateRow | RefusedRow) -> dict[str, Any]:
    pool, variant = found.pools[row.pool], found.variants[row.variant]
    return {
        "pool": pool.name,
        "model_variant": variant.name,
        "precision": variant.precision,
        "region": pool.region,
        "path": PATHS[row.path],
    }


def _candidate(found: RowsOfDecision, row: CandidateRow) -> dict[str, Any]:
    return _place(found, row) | _promise(row)


def _refused(found: RowsOfDecision, row: RefusedRow) -> dict[str, Any]:
    return _place(found, row) | {"refused": row.refused}


def _promise(row: CandidateRow) -> dict[str, Any]:
    return {
        "cost_usd": row.cost_usd,
        "ttft_s": _whole(row.ttft_us),
        "finish_s": row.finish_us / MICRO,
        "tpot_s": _whole(row.tpot_us),
        "chance": _whole(row.chance_ppm),
    }


def _placement(found: _Decision, told: Mapping[str, Any]) -> dict[str, Any]:
    batch = told.get("batch")
    row = found.profile or ()
    at = PROFILE.index("fallbacks")
    fallbacks = row[at] if len(row) > at else ()
    return _place(found, found.candidates[0]) | {
        "device": found.device,
        "batch_id": batch.get("id") if isinstance(batch, dict) else None,
        "attempt": told.get("attempt", 1),
        "fallbacks": _fallbacks(fallbacks),
    }


def _fallbacks(rows: Any) -> list[dict[str, Any]]:
    try:
        return [{"pool": pool, "reason": reason} for pool, reason in rows or ()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"decision.profile: fallbacks: {error}") from error


def _profile(row: Sequence[Any], told: Mapping[str, Any]) -> dict[str, Any]:
    # Later versions may have more columns.
    found = {name: value for name, value in zip(PROFILE, row, strict=False) if value is not None}
    found = {"id": told.get("request_id"), "ttft_s": None, "tpot_s": None} | found
    found |= {name: told[name] for name in PROFILE_COMMON if name in told}
    found.setdefault("routed_at", told.get("at"))
    if "fallbacks" in found:
        found["fallbacks"] = _fallbacks(found["fallbacks"])
    if "quality" in found:
        found["quality"] = _row("quality", QUALITY, found["quality"])
    if "quote" in found:
        found["quote"] = _row("quote", QUOTE, found["quote"])
    return found


def _row(name: str, columns: Sequence[str], row: Any) -> dict[str, Any]:
    if not isinstance(row, list):
        raise ValueError(f"decision.profile: {name}: no row")  # noqa: TRY004 - pydantic's
    return dict(zip(columns, row, strict=False))


def _tags(
    rows: Sequence[Sequence[Any] | None], found: RowsOfDecision, profile: Mapping[str, Any]
) -> dict[str, Any]:
    # By name, as canonical JSON has them where they are written with names.
    tags = {}
    for name, row in sorted(zip(TAGS, rows, strict=False), key=itemgetter(0)):
        if row is None:
            continue
        if len(row) < 2 or not isinstance(row[0], int) or not 0 <= row[0] < len(TAG_SOURCES):
            raise ValueError(f"decision.tags: {name}: no source and sureness")
        value = row[2] if len(row) > 2 else _implied(name, profile)
        if name == FOOTPRINT and isinstance(value, int):
            weights = {each.name: each.weights_bytes for each in found.variants}
            value = {"kv_bytes": value, "weights_bytes": weights}
        tags[name] = {"value": value, "source": TAG_SOURCES[row[0]], "confidence": row[1]}
    return tags


def _implied(name: str, profile: Mapping[str, Any]) -> object:
    if name in IMPLIED:
        return profile.get(IMPLIED[name])
    if name != LATENCY:
        raise ValueError(f"decision.tags: {name}: no value")
    try:
        left_s = profile["deadline"] - profile["created_at"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"decision.profile: {error}") from error
    direct = profile.get("latency_sensitive")
    return latency_of(direct, profile["ttft_s"], profile["tpot_s"], left_s)


def _inputs(found: _Decision) -> dict[str, Any] | None:
    if found.arrivals_per_s is None and found.head is None:
        return None
    loads = {pool.name: _load(pool.load) for pool in found.pools if pool.load is not None}
    by_pool = {pool: loads[pool] for pool in sorted(loads)}
    if found.head is None:
        return {
            "loads": by_pool,
            "arrivals_per_s": found.arrivals_per_s,
            "credit": found.credit and dict(zip(CREDIT, found.credit, strict=True)),
        }
    return {
        "loads": by_pool,
        "head": [_NO_WISH | dict(zip(WAITING, row, strict=False)) for row in found.head],
        "waiting": found.waiting,
        "idle_arrivals_per_s": found.idle_arrivals_per_s,
    }


def _load(row: Sequence[Any]) -> dict[str, Any]:
    told = _NO_LOAD | dict(zip(LOAD, row, strict=False))
    variants = told.pop("variants", None) or {}
    if not isinstance(variants, dict) or not all(isinstance(v, list) for v in variants.values()):
        raise ValueError("decision.pools: no rows of variants")
    each = {name: dict(zip(VARIANT_LOAD, v, strict=False)) for name, v in variants.items()}
    known = {name: each[name] for name in sorted(each)}
    return told | {
        "running_by_variant": {
            name: v["running"] for name, v in known.items() if v.get("running") is not None
        },
        "speed_by_variant": {
            name: v["speed"] for name, v in known.items() if v.get("speed") is not None
        },
        "failing": [name for name, v in known.items() if v.get("is_failing")],
        "learned": {
            name: [v["ttft_error"], v["tpot_error"], v["reuse"]]
            for name, v in known.items()
            if v.get("reuse") is not None
        },
        "drifted": [name for name, v in known.items() if v.get("is_drifted")],
    }
