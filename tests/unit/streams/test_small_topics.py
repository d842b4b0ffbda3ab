"""Topics that take less than Shunter writes, as one made with Kafka's own limit does.

Each request ends all the same, once, and none ends the process, or stops its partition.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hold_cases import hold, look, make_batcher, run
from stream_cases import START, Yard, drain, route
from worker_cases import ScriptedBackend, make_worker, place

from streams.engine.log import Outgoing
from topics import QuoteAnswer, decode

BYTES_MAX = 4000
# What a result gives back, larger than its topic takes.
MUCH = "x" * BYTES_MAX

Refuses = Callable[[Outgoing], bool]


def small(*topics: str) -> Refuses:
    """Return a broker's refusal of what is larger than these topics take."""
    return lambda record: record.topic in topics and len(record.value or b"") > BYTES_MAX


@pytest.mark.parametrize("hook", ["refuse", "oversized"])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "failed"),
        ({"deadline": START - 1}, "expired"),
        ({"model": "another"}, "rejected"),
        ({"task": "knitting"}, "rejected"),
    ],
)
async def test_what_a_router_ends_has_its_result_without_the_metadata(
    hook: str, fields: dict[str, Any], status: str
) -> None:
    yard = Yard()
    lanes = (yard.catalogue.pool_lane(pool, "direct") for pool in yard.options.by_pool)
    setattr(yard.cluster, hook, small(yard.catalogue.results, *lanes))
    yard.publish(0, id="large", metadata=MUCH, **fields)
    yard.publish(0, id="small", task="knitting", metadata="kept")
    await route(yard)
    found = yard.results()
    assert (found["large"].status, found["large"].metadata) == (status, None)
    assert (found["small"].status, found["small"].metadata) == ("rejected", "kept")
    assert [e.request_id for e in yard.evidence(status) if e.request_id == "large"] == ["large"]


async def test_what_expires_in_the_hold_has_its_result_without_the_metadata() -> None:
    yard = Yard(live=[])
    yard.cluster.refuse = small(yard.catalogue.results)
    for name, metadata in (("large", MUCH), ("small", "kept")):
        hold(yard, name, partition=0, metadata=metadata)
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = START + 4000
    await drain(transactor)
    found = yard.results()
    assert {name: (r.status, r.metadata) for name, r in found.items()} == {
        "large": ("expired", None),
        "small": ("expired", "kept"),
    }
    assert not yard.held()


async def test_a_member_refused_by_lane_and_results_leaves_and_the_others_go() -> None:
    yard = Yard()
    yard.cluster.refuse = small(
        yard.catalogue.results, yard.catalogue.pool_lane("boards-us", "batch")
    )
    for n in range(4):
        hold(yard, f"s{n}", metadata=MUCH if n == 1 else n)
    await look(yard)
    (result,) = yard.results().values()
    assert (result.id, result.status, result.metadata) == ("s1", "failed", None)
    assert len(yard.lane("boards-us", "batch")) == 3
    assert not yard.held()


async def test_what_a_worker_ends_has_its_result_without_the_metadata() -> None:
    yard = Yard()
    yard.cluster.refuse = small(yard.catalogue.results)
    backend = ScriptedBackend()
    place(yard, "c0", metadata=MUCH)
    transactor = await yard.run(make_worker(yard, backend))
    await transactor.step()
    backend.finish("c0")
    for _ in range(5):
        await transactor.step()
    (result,) = yard.results().values()
    assert (result.status, result.metadata) == ("failed", None)
    assert result.error is not None
    assert result.error.code == "result_refused"


async def test_a_question_has_its_answer_without_the_metadata() -> None:
    yard = Yard()
    yard.cluster.refuse = small(yard.catalogue.quote_answers)
    yard.publish(0, id="large", quote=True, metadata=MUCH)
    yard.publish(0, id="small", quote=True, metadata="kept")
    await route(yard)
    records = yard.cluster.records(yard.catalogue.quote_answers)
    answers = [decode(QuoteAnswer, record.value or b"") for record in records]
    assert {a.id: a.metadata for a in answers} == {"large": None, "small": "kept"}
    assert not yard.dead_letters()
