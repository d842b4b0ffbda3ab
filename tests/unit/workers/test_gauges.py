"""Gauges: what stands at the moment that someone asks, beside the limits that there are."""

import asyncio

from hold_cases import make_batcher
from memory_log import MemoryLog
from metrics_cases import make_metrics, read
from stream_cases import START, Yard, drain, make_router
from worker_cases import POOL, ScriptedBackend, place, serve

from streams.batcher.payload_cache import Room
from streams.metrics import registry as m
from streams.metrics.gauges import GROUPS_MAX, hold_gauges
from workers.gauges import worker_gauges
from workers.resilience.circuit_breaker import Breakers


async def test_a_hold_tells_how_near_it_is_to_its_limits() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    batcher = make_batcher(yard, held_records_max=7, held_payload_bytes_max=5_000)
    metrics.gauges.read_from(hold_gauges(batcher, lambda: yard.policy, yard.clock))
    router = await yard.run(make_router(yard))
    transactor = await yard.run(batcher, MemoryLog(yard.cluster, "b"))
    for n in range(3):
        yard.publish(id=f"s{n}", task="summarization")
    await drain(router)
    await drain(transactor)
    sizes = [
        len(record.value or b"") + sum(len(value) for _, value in record.headers)
        for record in yard.held()
    ]
    assert read(metrics, m.HOLD_PAYLOADS) == {(): sum(sizes)}
    assert read(metrics, m.HOLD_PAYLOADS_LIMIT) == {(): 5_000}
    assert read(metrics, m.HOLD_LIMIT) == {(): 7}
    yard.clock.at += 50
    await transactor.step()
    assert read(metrics, m.HOLD_PAYLOADS) == {}


async def test_a_worker_tells_how_near_it_is_to_its_limit() -> None:
    yard = Yard()
    metrics, backend = make_metrics(yard), ScriptedBackend()
    worker, transactor = await serve(yard, backend, in_flight_max=9)
    breakers = Breakers(POOL, ["yard-8b-fp8"], backend, yard.clock)
    metrics.gauges.read_from(worker_gauges(POOL, worker, backend, breakers))
    for n in range(5):
        place(yard, f"c{n}")
    await transactor.step()
    await asyncio.sleep(0)
    assert read(metrics, m.IN_FLIGHT) == {(POOL, "running"): 4, (POOL, "queued"): 1}
    assert read(metrics, m.IN_FLIGHT_LIMIT) == {(POOL,): 9}
    assert read(metrics, m.SLOTS) == {(POOL,): 4}
    await transactor.stop()


async def test_a_worker_tells_how_many_replies_migrated_where_replies_do() -> None:
    yard = Yard()
    metrics, backend = make_metrics(yard), ScriptedBackend()
    worker, transactor = await serve(yard, backend)
    breakers = Breakers(POOL, ["yard-8b-fp8"], backend, yard.clock)
    metrics.gauges.read_from(worker_gauges(POOL, worker, backend, breakers))
    for moved in (None, 0, 3):
        backend.migrations = moved
        (series,) = m.MIGRATIONS.series
        page = metrics.page("")[1].decode().splitlines()
        told = [] if moved is None else [f'{series}{{pool="{POOL}"}} {moved:.1f}']
        assert [line for line in page if line.startswith(series)] == told
    await transactor.stop()


async def test_groups_beyond_the_limit_are_one_and_no_series_is_there_twice() -> None:
    class Windows:
        def tasks(self) -> dict[str, int]:
            return {"chat": 5}

        def oldest(self) -> dict[str, float]:
            return dict.fromkeys(sizes, START - 5)

    class Batcher:
        held_records_max = 1
        room = Room(1)

        def windows(self) -> list[Windows]:
            return [Windows()]

        def sizes(self) -> dict[str, int]:
            return sizes

    # Alike as far as they are shown.
    sizes = {"g" * 200 + str(n): n + 1 for n in range(GROUPS_MAX + 5)}
    yard = Yard()
    metrics = make_metrics(yard)
    metrics.gauges.read_from(hold_gauges(Batcher(), lambda: yard.policy, yard.clock))  # type: ignore[arg-type]
    found = read(metrics, m.GROUP_REQUESTS)
    assert len(found) == GROUPS_MAX + 1
    assert found["other",] == 1 + 2 + 3 + 4 + 5
    assert sum(found.values()) == sum(sizes.values())
