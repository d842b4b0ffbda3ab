"""The worker on the log in memory: each request ends once, in whatever order they finish."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from memory_log import Crash, CrashPoint, MemoryLog
from stream_cases import MODEL, START, TRACEPARENT, Yard, heartbeat, make_profile, step_until
from worker_cases import (
    PROMISED,
    ScriptedBackend,
    make_worker,
    partition,
    place,
    progress,
    serve,
)

from streams.engine.log import LogError
from topics import Cost, Progress, Response, Timing, Usage
from workers.stage.partition_state import InFlight
from workers.stage.start_limiter import BURST, PER_S, StartLimiter
from workers.stage.worker import FINISH_POLL_S_MAX, FINISH_POLL_S_MIN


async def step_times(transactor: Any, times: int = 5) -> None:
    for _ in range(times):
        await transactor.step()


async def test_an_answer_its_evidence_and_the_progress_are_one_transaction() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    headers = (("traceparent", TRACEPARENT),)
    place(yard, "c0", number=2, extra=headers, metadata={"of": "mine"})
    _, transactor = await serve(yard, backend)
    await transactor.step()
    await asyncio.sleep(0)
    backend.finish("c0")
    await step_until(transactor, yard.results, "the result")
    option = yard.options.of("premium-eu", "yard-8b-fp8")
    result = yard.results()["c0"]
    assert result.status == "completed"
    assert result.response == Response(200, {"choices": [{"text": "c0"}]})
    assert result.usage == Usage(20, 10)
    assert result.cost == Cost(0.9 * option.usd_per_s, PROMISED.cost_usd)
    assert result.metadata == {"of": "mine"}
    assert result.model == "yard-8b"
    assert result.trace_id == TRACEPARENT.decode()[3:35]
    assert result.timing == Timing(START, START, None, START + 1.0, START + 1.2, START + 3.0)
    assert result.placement is not None
    assert (result.placement.pool, result.placement.path) == ("premium-eu", "direct")

    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.at) == ("executed", START + 3.0)
    assert evidence.promised == PROMISED
    assert evidence.got is not None
    assert evidence.got.ttft_s == pytest.approx(1.2)
    assert evidence.got.finish_s == pytest.approx(3.0)
    assert evidence.got.tpot_s == pytest.approx(1.8 / 9)
    assert (evidence.source.partition, evidence.source.offset) == (2, 0)
    written = [
        *yard.cluster.records(yard.catalogue.results),
        *yard.cluster.records(yard.catalogue.evidence),
        *yard.cluster.records(yard.catalogue.progress),
    ]
    assert len(written) == 3
    assert len({id(yard.cluster.transaction_of(record)) for record in written}) == 1


async def test_a_member_of_a_batch_tells_of_its_batch_and_its_release() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "s0", lane="batch", task="summarization")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: bool(backend.running), "the call")
    backend.finish("s0")
    await step_until(transactor, yard.results, "the result")
    result = yard.results()["s0"]
    assert result.timing.released_at == START + 0.5
    assert result.placement is not None
    assert (result.placement.path, result.placement.batch_id) == ("batch", "b-0")
    (evidence,) = yard.evidence()
    assert evidence.batch is not None
    assert (evidence.batch.id, evidence.batch.index, evidence.batch.size) == ("b-0", 0, 2)


async def test_progress_is_the_lowest_open_offset_and_what_is_finished_above_it() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(4):
        place(yard, f"c{n}")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "the calls")
    assert progress(yard) is None
    for name, expected in (
        ("c2", Progress(0, (2,))),
        ("c0", Progress(1, (2,))),
        ("c1", Progress(3)),
        ("c3", Progress(4)),
    ):
        backend.finish(name)
        await step_until(transactor, lambda name=name: name in yard.results(), name)
        assert progress(yard) == expected


async def test_a_restart_repeats_only_what_had_no_result() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(4):
        place(yard, f"c{n}")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "the calls")
    for name in ("c1", "c3"):
        backend.finish(name)
    await step_until(transactor, lambda: len(yard.results()) == 2, "two results")

    second = ScriptedBackend()
    _, transactor = await serve(yard, second, "second")
    await step_until(transactor, lambda: len(second.running) == 2, "the rest")
    assert second.began == ["c0", "c2"]
    second.finish("c2")
    await step_until(transactor, lambda: len(yard.results()) == 3, "the third")
    assert progress(yard) == Progress(0, (1, 2, 3))

    third = ScriptedBackend()
    _, transactor = await serve(yard, third, "third")
    await step_until(transactor, lambda: bool(third.running), "the last")
    assert third.began == ["c0"]
    third.finish("c0")
    await step_until(transactor, lambda: len(yard.results()) == 4, "all")
    assert progress(yard) == Progress(4)


@pytest.mark.parametrize("point", ["begin", "append", "commit", "committed"])
async def test_each_request_ends_once_wherever_the_worker_dies(point: CrashPoint) -> None:
    for nth in range(1, 5):
        yard = Yard()
        for n in range(12):
            place(yard, f"c{n}", number=n % 2, lane="batch" if n % 3 == 0 else "direct")
        crash = yard.cluster.crash = Crash(point, nth)
        chance = random.Random(nth)
        for name in ("first", "second", "third"):
            backend = ScriptedBackend()
            _, transactor = await serve(yard, backend, name)
            try:
                for _ in range(100):
                    if backend.running:
                        backend.finish(chance.choice(backend.running))
                        await asyncio.sleep(0)
                    await transactor.step()
            except Exception:  # noqa: BLE001 - whichever way it dies
                assert crash.has_struck
        assert crash.has_struck
        assert len(yard.results()) == 12, f"crash at {point} {nth}"
        assert len(yard.evidence("executed")) == 12


async def test_what_finishes_during_a_transaction_goes_with_the_next() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(3):
        place(yard, f"c{n}")
    worker, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 3, "the calls")

    def finish_meanwhile(_record: object) -> bool:
        if meanwhile:
            backend.finish(meanwhile.pop())
        return False

    meanwhile = ["c2"]
    backend.finish("c1")
    yard.cluster.refuse = finish_meanwhile
    await step_until(transactor, lambda: "c1" in yard.results(), "the first")
    # c2 has finished, but it is in no transaction that has been committed.
    assert "c2" not in yard.results()
    assert progress(yard) == Progress(0, (1,))
    assert worker.has_open
    assert worker.idle_s() == 0.0
    await step_until(transactor, lambda: "c2" in yard.results(), "the one that came meanwhile")
    assert progress(yard) == Progress(0, (1, 2))


async def test_direct_work_goes_before_batch_work_that_came_first() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(6):
        place(yard, f"s{n}", lane="batch", task="summarization")
    worker, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "a full device")
    place(yard, "c0")
    await step_times(transactor)
    assert (worker.running, worker.queued) == (4, 3)
    assert backend.began == ["s0", "s1", "s2", "s3"]
    backend.finish("s1")
    # At once, not when the loop comes round.
    for _ in range(5):
        await asyncio.sleep(0)
    assert backend.began[4:] == ["c0"]
    backend.finish("c0")
    await step_until(transactor, lambda: len(backend.began) == 6, "the next")
    assert backend.began[5] == "s4"


async def test_priority_goes_before_what_came_first() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(7):
        place(yard, f"c{n}")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "a full device")
    place(yard, "p0", service_tier="priority")
    place(yard, "p1", lane="batch", service_tier="flex")
    await step_times(transactor)
    for n, expected in enumerate(["p0", "c4", "c5", "c6", "p1"]):
        backend.finish(backend.running[0])
        await step_until(transactor, lambda n=n: len(backend.began) == 5 + n, "the next")
        assert backend.began[4 + n] == expected


async def test_batch_work_takes_its_share_and_direct_work_the_rest() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    worker, transactor = await serve(yard, backend, in_flight_max=6)
    batch, direct = partition(yard, lane="batch"), partition(yard)
    for n in range(3):
        assert worker.wants(batch)
        place(yard, f"s{n}", lane="batch", task="summarization")
        await step_times(transactor, 2)
    assert not worker.wants(batch)
    for n in range(3):
        assert worker.wants(direct)
        place(yard, f"c{n}")
        await step_times(transactor, 2)
    assert not worker.wants(direct)
    place(yard, "c3")
    await step_times(transactor)
    assert (worker.running, worker.queued) == (4, 2)
    backend.finish("s0")
    await step_until(transactor, lambda: worker.queued == 2 and worker.running == 4, "c3 taken")
    await step_times(transactor)
    assert sum(len(lane.open) for lane in worker._lanes.values()) == 6


async def test_large_requests_are_taken_by_their_bytes() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 5000}]}
    first = place(yard, "c0", body=body)
    worker, transactor = await serve(yard, backend, in_flight_bytes_max=2 * first.size_bytes)
    await step_times(transactor, 2)
    assert worker.wants(partition(yard))
    assert not worker.wants(partition(yard, lane="batch"))
    place(yard, "c1", body=body)
    await step_times(transactor, 2)
    assert not worker.wants(partition(yard))
    place(yard, "c2")
    await step_times(transactor, 2)
    assert "c2" not in backend.began
    backend.finish("c0")
    await step_until(transactor, lambda: "c2" in backend.began, "the next")
    backend.finish("c1")
    backend.finish("c2")
    await step_until(transactor, lambda: len(yard.results()) == 3, "all results")
    assert worker.wants(partition(yard, lane="batch"))


async def test_partitions_that_go_to_another_make_room() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    worker, transactor = await serve(yard, backend, in_flight_max=2)
    for n in range(2):
        place(yard, f"c{n}", number=n)
    await step_times(transactor, 2)
    assert not worker.wants(partition(yard))
    worker.forget(partition(yard, 1))
    assert worker.wants(partition(yard))
    worker.forget(partition(yard, 0))
    assert worker._in_flight == InFlight()


async def test_a_partition_waits_behind_a_request_that_many_have_overtaken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.stage.worker.FINISHED_MAX", 3)
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(4):
        place(yard, f"c{n}")
    worker, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "the calls")
    for name in ("c1", "c2", "c3"):
        assert worker.wants(partition(yard))
        backend.finish(name)
        await step_until(transactor, lambda name=name: name in yard.results(), name)
    assert not worker.wants(partition(yard))
    assert worker.wants(partition(yard, 1))
    backend.finish("c0")
    await step_until(transactor, lambda: "c0" in yard.results(), "the first")
    assert worker.wants(partition(yard))


def test_starts_beyond_a_burst_are_spread() -> None:
    pace, places = StartLimiter(), 900
    assert all(pace.take(100.0, places) == 0 for _ in range(BURST))
    wait_s = pace.take(100.0, places)
    assert 0 < wait_s <= 1 / PER_S
    assert pace.take(100.0 + wait_s * 1.01, places) == 0
    taken = sum(pace.take(101.0 + n / 10_000, places) == 0 for n in range(10_000))
    assert taken == pytest.approx(BURST + PER_S, abs=2)


def test_where_calls_are_short_more_may_start() -> None:
    pace = StartLimiter()
    for _ in range(100):
        pace.ended(0.002)
    # One after the other, as they do where each ends before the next one starts.
    taken = sum(pace.take(101.0 + n / 100_000, 64) == 0 for n in range(100_000))
    assert taken == pytest.approx(BURST + 64 / 0.002, rel=0.02)


async def test_short_calls_are_looked_for_sooner() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    worker, transactor = await serve(yard, backend)
    for n in range(60):
        place(yard, f"c{n}")
        await step_until(transactor, lambda n=n: f"c{n}" in backend.running, "it runs")
        assert worker.idle_s() <= FINISH_POLL_S_MAX
        backend.finish(f"c{n}")
        await step_until(transactor, lambda n=n: f"c{n}" in yard.results(), "its result")
    place(yard, "last")
    await step_until(transactor, lambda: "last" in backend.running, "the last runs")
    assert worker.idle_s() == FINISH_POLL_S_MIN


async def test_what_may_not_start_at_once_starts_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.stage.start_limiter.BURST", 1)
    # So slow that a busy machine comes to look before the second one starts.
    monkeypatch.setattr("workers.stage.start_limiter.PER_S", 4.0)
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(4):
        place(yard, f"c{n}")
    _, transactor = await serve(yard, backend, in_flight_max=4)
    await transactor.step()
    await asyncio.sleep(0)
    assert len(backend.running) == 1
    # Without another step, by the clock of the loop alone.
    await eventually_running(backend, 4)


async def eventually_running(backend: ScriptedBackend, count: int) -> None:
    async with asyncio.timeout(90):
        while len(backend.running) < count:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)


async def test_the_smallest_limit_still_takes_batch_work() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "s0", lane="batch", task="summarization")
    _, transactor = await serve(yard, backend, in_flight_max=1)
    await step_until(transactor, lambda: bool(backend.running), "the call")


async def test_a_revoked_partition_is_cancelled_and_another_runs_it_again() -> None:
    yard = Yard()
    first, second = ScriptedBackend(), ScriptedBackend()
    for n in range(3):
        place(yard, f"a{n}", number=0)
        place(yard, f"b{n}", number=1)
    worker, transactor = await serve(yard, first)
    other = make_worker(yard, second)
    await step_until(transactor, lambda: len(first.running) == 4, "a full device")
    kept = [name for name in first.running if name.startswith("b")]
    waiting = [f"b{n}" for n in range(3) if f"b{n}" not in kept]

    successor = await yard.run(other, MemoryLog(yard.cluster, "z"))
    shares = {"a": [partition(yard, 1)], "z": [partition(yard, 0)]}
    await yard.cluster.assign(worker.group, shares)
    # Eager: everything was revoked for a moment, so b is run again from its beginning.
    assert set(first.cancelled) == {"a0", "a1", "a2", "b0"} - set(waiting)
    await step_until(transactor, lambda: len(first.running) == 3, "b again")
    await step_until(successor, lambda: len(second.running) == 3, "a at its new owner")
    assert sorted(first.running) == ["b0", "b1", "b2"]
    for name in ("b0", "b1", "b2"):
        first.finish(name)
    for name in ("a0", "a1", "a2"):
        second.finish(name)
    await step_until(transactor, lambda: worker.running == 0 and not worker.has_open, "b")
    await step_until(successor, lambda: not other.has_open, "a")
    assert sorted(yard.results()) == ["a0", "a1", "a2", "b0", "b1", "b2"]


async def test_a_call_that_is_cancelled_before_it_began_leaves_its_place_free() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    worker = make_worker(yard, backend)
    home = partition(yard)
    await worker.restore(home, None, MemoryLog(yard.cluster))
    for n in range(6):
        place(yard, f"c{n}")
    records = yard.cluster.records(home.topic)
    await worker.work(home, records)
    worker.forget(home)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert backend.began == []
    assert (worker.running, worker.queued) == (0, 0)


async def test_a_defect_of_the_backend_sends_the_request_elsewhere() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "c0")
    place(yard, "c1")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 2, "the calls")
    backend.fail("c0", ZeroDivisionError("oops"))
    await step_until(transactor, yard.evidence, "the fallback")
    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.reason) == ("fell_back", "backend_defect")
    assert "oops" not in (evidence.message or "")
    backend.finish("c1")
    await step_until(transactor, yard.results, "the other")
    assert list(yard.results()) == ["c1"]


async def test_a_log_that_fails_a_running_request_ends_the_process() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "c0")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: bool(backend.running), "the call")
    backend.fail("c0", LogError("gone"))
    with pytest.raises(LogError, match="could not be ended"):
        await step_times(transactor, 10)
    assert not yard.results()
    assert progress(yard) is None


async def test_a_draining_worker_takes_no_more_and_commits_what_runs() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(6):
        place(yard, f"c{n}")
    worker, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "a full device")
    worker.is_draining = True
    assert not worker.wants(partition(yard))
    place(yard, "late")
    for n in range(4):
        backend.finish(f"c{n}")
    await step_until(transactor, lambda: not worker.has_open, "what ran")
    await transactor.stop()
    assert sorted(yard.results()) == ["c0", "c1", "c2", "c3"]
    assert len(backend.began) == 4
    assert progress(yard) == Progress(4)

    second = ScriptedBackend()
    _, transactor = await serve(yard, second, "second")
    await step_until(transactor, lambda: len(second.running) == 3, "the rest")
    assert second.began == ["c4", "c5", "late"]


async def test_what_a_worker_tells_of_itself() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    worker, transactor = await serve(yard, backend)
    assert worker.slots == heartbeat(yard.options, "premium-eu", START).slots == 4
    assert (worker.running, worker.queued, worker.queued_prefill_s) == (0, 0, 0.0)
    assert worker.urgent == 0
    assert worker.idle_s() == float("inf")
    assert not worker.has_open
    for n in range(6):
        profile = make_profile(yard.policy, id=f"c{n}", hints={"input_tokens": 1000})
        if n in (0, 5):
            profile = replace(profile, ttft_s=None, tpot_s=None)
        place(yard, f"c{n}", hints={"input_tokens": 1000}, profile=profile)
    await step_until(transactor, lambda: len(backend.running) == 4, "a full device")
    assert (worker.running, worker.queued) == (4, 2)
    # One that runs and one that waits have no SLO of latency.
    assert worker.urgent == 4
    option = yard.options.of("premium-eu", "yard-8b-fp8")
    expected_s = 2 * option.roofline.prefill_s(1000) / option.time_scale
    assert worker.queued_prefill_s == pytest.approx(expected_s)
    assert worker.idle_s() == FINISH_POLL_S_MAX
    assert worker.has_open


async def test_what_requests_take_to_a_worker_is_of_direct_ones() -> None:
    yard, backend = Yard(), ScriptedBackend()
    for number in range(3):
        place(yard, f"c{number}", number=number)
    worker, transactor = await serve(yard, backend)
    assert worker.backlog.transport.usual_s is None
    yard.clock.at += 0.03
    await transactor.step()
    assert worker.backlog.transport.usual_s == pytest.approx(0.03, abs=1e-3)
