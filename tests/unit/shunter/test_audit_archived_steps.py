"""Columns that are read quickly are those that the archiver makes, and any other is seen."""

from dataclasses import replace

import orjson
import pyarrow as pa
import pytest
from audit_cases import make_trail
from evidence_cases import named
from stream_cases import START

from benchmarks.evidence import samples
from shunter.archive.rows import SCHEMAS, table_of
from shunter.audit.archived_steps import ArchivedStep, differs, read_step
from streams.engine.log import Partition, Record
from topics.records.evidence_bytes import evidence_bytes

STANDING = {"partition", "offset", "timestamp_ms", "key", "value", "raw"}


async def records() -> list[Record]:
    """Evidence of a router and a batcher, and decision and execution with all their members."""
    home, (placed, executed) = Partition("evidence", 0), samples()
    assert executed.placement is not None
    member = replace(executed, placement=replace(executed.placement, batch_id="b-1"), attempt=2)
    rows = [evidence_bytes(each) for each in (placed, executed, member)]
    values = [*rows, *(orjson.dumps(named(value)) for value in rows)]
    made = [Record(home, n, b"k", value, [], int(START * 1000)) for n, value in enumerate(values)]
    return [*(await make_trail()).evidence, *made]


def steps_of(found: list[Record]) -> list[ArchivedStep]:
    steps = [read_step(record.value) for record in found]
    return [step for step in steps if step is not None]


async def test_they_are_those_of_the_archiver() -> None:
    found = await records()
    steps, table = steps_of(found), table_of("evidence", found)
    assert len(steps) == len(found)
    assert not differs(table, steps)
    assert all(
        table.column(name).null_count < len(found) for name in table.column_names if name != "raw"
    ), "each column has a value somewhere"


@pytest.mark.parametrize("name", [n for n in SCHEMAS["evidence"].names if n not in STANDING])
async def test_another_value_in_any_column_is_seen(name: str) -> None:
    found = await records()
    steps, table = steps_of(found), table_of("evidence", found)
    kind = SCHEMAS["evidence"].field(name).type
    for at in range(0, len(found), 5):
        values = table.column(name).to_pylist()
        values[at] = "other" if pa.types.is_string(kind) else (values[at] or 0) + 1
        where = table.column_names.index(name)
        assert differs(table.set_column(where, name, pa.array(values, kind)), steps)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"[]", b"{", b"\xff", orjson.dumps({"request_id": "r"})],
)
def test_what_is_no_step_is_left_to_the_archiver(value: bytes | None) -> None:
    assert read_step(value) is None


def test_a_decision_of_another_schema_is_left_to_the_archiver() -> None:
    placed, _ = samples()
    told = orjson.loads(evidence_bytes(placed))
    told["decision"]["schema"] = 2
    assert read_step(orjson.dumps(told)) is None
