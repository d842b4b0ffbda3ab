"""The comparison of a view with the topics finds what a view has lost; it needs no Kafka."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from evidence_cases import named
from live_counts import compare
from memory_log import MemoryLog
from stream_cases import START, Yard, drain, make_router
from worker_cases import POOL, ScriptedBackend, make_worker

from policies import Options
from streams.live import LiveView, snapshot_of
from topics import encode


async def viewed() -> tuple[Any, Any, Options]:
    """Return a view of a small load, and the records that it was made of."""
    yard, backend = Yard(), ScriptedBackend()
    router = await yard.run(make_router(yard))
    serving = await yard.run(make_worker(yard, backend), MemoryLog(yard.cluster, "w"))
    for name in ("kept", "late", "lost", "moved"):
        yard.publish(id=name, constraints={"pools": [POOL]})
    yard.publish(id="nowhere", constraints={"regions": ["mars"]})
    yard.publish(id="kept")
    yard.publish(id="expired", task="summarization", deadline=START - 1)
    await drain(router)
    await drain(serving)
    await asyncio.sleep(0)
    backend.finish("kept")
    backend.finish("late", first_token_at=START + 2.5)
    backend.lose("lost", elsewhere=False)
    backend.lose("moved", elsewhere=True)
    await asyncio.sleep(0)
    await drain(serving)
    await serving.step()
    view = LiveView(yard.catalogue, yard.options, yard.policy, since=START - 60)
    records = yard.cluster.records(yard.catalogue.evidence)
    for record in records:
        view.take(record, START + 5)
    results = {
        orjson.loads(r.value or b"")["id"]: [orjson.loads(r.value or b"")]
        for r in yard.cluster.records(yard.catalogue.results)
    }
    system = SimpleNamespace(
        fleet={"pools": dict.fromkeys(yard.options.by_pool)},
        results=results,
        evidence=[named(r.value or b"") for r in records],
        dead_letters=yard.dead_letters(),
    )
    return orjson.loads(encode(snapshot_of(view, START + 5))), system, yard.options


async def test_what_a_view_shows_is_what_the_topics_have() -> None:
    shown, system, options = await viewed()
    assert {e["step"] for e in system.evidence} >= {"executed", "failed", "fell_back", "expired"}
    compare(shown, system, options)


@pytest.mark.parametrize(
    "lose",
    [
        lambda shown: shown.update(pools=[]),
        lambda shown: shown["pools"].pop(),
        lambda shown: shown["classes"].pop(),
        lambda shown: shown["classes"][0].update(judged=shown["classes"][0]["judged"] + 1),
        lambda shown: shown["money_total"].update(saving=0.5),
        lambda shown: shown["money_total"].update(compared_usd=0.0),
    ],
)
async def test_what_a_view_has_lost_is_found(lose: Callable[[Any], Any]) -> None:
    shown, system, options = await viewed()
    lose(shown)
    with pytest.raises(AssertionError):
        compare(shown, system, options)
