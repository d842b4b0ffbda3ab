"""The trace of a request on each of the six paths, read back from a real Jaeger."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from typing import Any

import jaeger as real
import orjson
import pytest
import pytest_asyncio
from model_server import Exchange, good, serving
from system import FLEET, System, chat, eventually

from shunter.jaeger import Span, find_trace_ids, read_trace

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

SECRET = "Which track does this wagon go to?"
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SUMMARY = {"task": "summarization", "completion_window": "10m"}


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Jaeger]:
    program = real.binary()
    if program is None:
        pytest.skip("no Jaeger: set JAEGER_BIN to one (https://www.jaegertracing.io/download/)")
    with real.running(program, tmp_path_factory.mktemp("jaeger")) as found:
        yield found


async def failing(x: Exchange) -> None:
    if x.body is None:
        await good(x)
    else:
        await x.json({"error": {"message": "out of memory"}}, status=500)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    kafka: str, jaeger: real.Jaeger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """All six paths at once, each to its end."""
    async with serving(failing) as server:
        fleet = deepcopy(FLEET)
        fleet["pools"]["flaky-eu"] = deepcopy(FLEET["pools"]["premium-eu"]) | {
            "backend": {"type": "openai", "base_url": server.base_url},
            "usd_per_hour": 0.01,
        }
        directory = tmp_path_factory.mktemp("system")
        async with System(
            kafka, f"jaeger-{os.getpid()}", directory, fleet=fleet, extra_env=jaeger.environment()
        ) as system:
            system.start_all()
            await publish_all(system)
            ends = {"direct", "b-0", "b-1", "b-2", "fallback", "rejected", "expired"}
            await system.wait_for_results(ends, 30)
            await eventually(lambda: has_dead_letter(system), "the dead letter")
            await asyncio.to_thread(system.stop)
            yield system


async def publish_all(system: System) -> None:
    only = {"pools": ["premium-eu"]}
    await system.publish(
        chat("direct", constraints=only), headers=[("traceparent", CLIENT.encode())]
    )
    either = {"pools": ["premium-eu", "flaky-eu"]}
    await system.publish(chat("fallback", constraints=either))
    for n in range(3):
        batchable = chat(f"b-{n}", constraints={"pools": ["lpddr-us"]}, **SUMMARY)
        await system.publish(batchable)
    await system.publish(chat("rejected", constraints={"regions": ["eu-north"]}))
    await system.publish(chat("expired", deadline=time.time() - 5.0))
    await system.publish(b'{"id": "no body"}', key=b"dead")


async def has_dead_letter(system: System) -> bool:
    await system.read()
    return bool(system.dead_letters)


async def trace_of(system: System, jaeger: real.Jaeger, name: str, size: int) -> list[Span]:
    """The whole trace that the result names."""
    trace_id = system.result(name)["trace_id"]
    spans: list[Span] = []

    async def is_whole() -> bool:
        spans[:] = await read_trace(jaeger.page, trace_id)
        return len(spans) >= size

    await eventually(is_whole, f"{size} spans of {name}", 10)
    return spans


def shape(spans: list[Span], topics: str, parent_id: str = "") -> Any:
    """The names as a tree, with what they hold: a list of (name, what is below it)."""
    known = {span.span_id for span in spans}
    here = [
        s for s in spans if s.parent_id == parent_id or (not parent_id and s.parent_id not in known)
    ]
    return [
        (s.name.replace(topics, "T"), shape(spans, topics, s.span_id))
        for s in sorted(here, key=lambda s: (s.start, s.name))
    ]


async def test_direct(system: System, jaeger: real.Jaeger) -> None:
    from rich.console import Console

    from shunter.trace_tree import tree

    for name in ("direct", "b-0", "fallback", "rejected", "expired"):
        spans = await trace_of(system, jaeger, name, 1)
        print(shape(spans, system.prefix))
        Console(width=110).print(tree(spans))
    for t in await find_trace_ids(jaeger.page, "shunter-router", {"messaging.message.id": "dead"}):
        Console(width=110).print(tree(await read_trace(jaeger.page, t)))
    link = next(l for s in await trace_of(system, jaeger, "b-0", 1) for l in s.links)
    Console(width=110).print(tree(await read_trace(jaeger.page, link.trace_id)))
    print(orjson.dumps([s.attributes for s in spans], option=orjson.OPT_INDENT_2).decode())
    print(
        orjson.dumps(
            [s.attributes for s in await trace_of(system, jaeger, "direct", 1)],
            option=orjson.OPT_INDENT_2,
        ).decode()
    )
