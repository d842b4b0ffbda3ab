"""Evidence of an archive read once: as a step for the verifier, and as the columns of its row.

``table_of`` of the archive says what columns a record has, at the cost of parsing all of it into
Python objects. Here only what the columns need is read, by one typed reader. Where it can't read a
record, or finds other columns than the archive has, ``table_of`` is asked for that batch.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from shunter.archive.rows import SCHEMAS
from streams.evidence.projection import AskedStep, SeenPlacement, read_asked


class _Batch(msgspec.Struct, gc=False):
    id: str | None = None


class _Placed(SeenPlacement, kw_only=True, gc=False):
    batch_id: str | None = None


class ArchivedStep(AskedStep, kw_only=True, gc=False):
    """A step with all that the columns of an archive tell."""

    batch: _Batch | None = None
    fleet_version: str | None = None
    model: str | None = None
    placement: _Placed | None = None
    policy_version: str | None = None
    writer: str | None = None


_DECODE = msgspec.json.Decoder(ArchivedStep).decode
# By the name of a column: the member of a step that it is, and within that the member of it.
_WITHIN = {
    **{
        name: ("placement", name)
        for name in ("pool", "device", "model_variant", "precision", "region", "path")
    },
    "input_tokens": ("usage", "input_tokens"),
    "output_tokens": ("usage", "output_tokens"),
    "promised_cost_usd": ("promised", "cost_usd"),
    "promised_finish_s": ("promised", "finish_s"),
    "cost_usd": ("got", "cost_usd"),
    "ttft_s": ("got", "ttft_s"),
    "finish_s": ("got", "finish_s"),
}


def read_step(value: bytes | None) -> ArchivedStep | None:
    """Return the step in the value of a record; None if it is none that this reads."""
    try:
        step = _DECODE(value or b"")
        is_decided = step.decision is not None and step.decision.device is not None
        read_asked(step)
    except msgspec.MsgspecError:
        return None
    placed = step.placement
    if is_decided and placed is not None:
        batch_id = None if step.batch is None else step.batch.id
        step.placement = _Placed(
            batch_id=batch_id,
            device=placed.device,
            model_variant=placed.model_variant,
            path=placed.path,
            pool=placed.pool,
            precision=placed.precision,
            region=placed.region,
        )
    return step


def differs(table: pa.Table, steps: Sequence[ArchivedStep]) -> bool:
    """Return whether a column of evidence is another than that of these steps."""
    members: dict[str, list[Any]] = {
        name: [getattr(step, name) for step in steps]
        for name in ("placement", "usage", "promised", "got")
    }
    for field in SCHEMAS["evidence"]:
        made = _column(field.name, steps, members)
        if made is not None and not table.column(field.name).equals(
            pa.chunked_array([pa.array(made, field.type)])
        ):
            return True
    return False


def _column(
    name: str, steps: Sequence[ArchivedStep], members: dict[str, list[Any]]
) -> list[Any] | None:
    """Return a column's values; None of one that is no part of the record's value."""
    if name == "batch_id":
        return [None if each is None else each.batch_id for each in members["placement"]]
    if name in _WITHIN:
        holder, inner = _WITHIN[name]
        return [None if each is None else getattr(each, inner) for each in members[holder]]
    if name in ArchivedStep.__struct_fields__:
        return [getattr(step, name) for step in steps]
    return None
