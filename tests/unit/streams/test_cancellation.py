"""A request that its client cancels ends once, as `cancelled`, wherever it is by then."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from cancellation_cases import LEFT, assert_cancelled_once, cancel
from hold_cases import hold, make_batcher
from hold_cases import run as run_batcher
from memory_log import Crash, MemoryLog, ProcessKilledError
from stream_cases import START, Yard, drain, keys, step_until
from worker_cases import ScriptedBackend, place, progress, serve

from streams.batcher import stage
from streams.cancellation.index import Cancellations
from streams.cancellation.stage import Canceller
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.transactor import Transactor
from topics import BadRecordError, Cancellation, Progress, parse_cancellation
from topics.records.cancellation import CANCELLATION_S


class TestHeld:
    async def test_a_held_request_ends_and_its_company_goes_without_it(self) -> None:
        yard = Yard()
        for n in range(3):
            hold(yard, f"s{n}", metadata=n)
        held = make_batcher(yard)
        transactor = await run_batcher(yard, held)
        await transactor.step()
        cancel(yard, "s1")
        assert held.idle_s() == 0.0
        await transactor.step()
        assert_cancelled_once(yard, "s1")
        assert yard.results()["s1"].metadata == 1
        assert sorted(keys(yard.held())) == ["s0", "s2"]
        assert held.idle_s() > 0
        yard.clock.at = START + 45
        await transactor.step()
        assert sorted(keys(yard.lane("boards-us", "batch"))) == ["s0", "s2"]
        assert yard.results().keys() == {"s1"}

    async def test_result_tombstone_and_evidence_are_one_transaction(self) -> None:
        yard = Yard()
        hold(yard, "s0")
        transactor = await run_batcher(yard, make_batcher(yard))
        cancel(yard, "s0")
        await transactor.step()
        (result,) = yard.cluster.records(yard.catalogue.results)
        (evidence,) = yard.cluster.records(yard.catalogue.evidence)
        (tombstone,) = [r for r in yard.cluster.records(yard.catalogue.held) if r.value is None]
        written = {id(yard.cluster.transaction_of(r)) for r in (result, evidence, tombstone)}
        assert len(written) == 1

    async def test_a_full_batch_that_is_due_goes_without_the_cancelled(self) -> None:
        """Both are due in the same step: it ends in one way only."""
        yard = Yard()
        for n in range(4):
            hold(yard, f"s{n}")
        held = make_batcher(yard)
        transactor = await run_batcher(yard, held)
        cancel(yard, "s0")
        await drain(transactor)
        assert_cancelled_once(yard, "s0")
        yard.clock.at = START + 45
        await transactor.step()
        assert sorted(keys(yard.lane("boards-us", "batch"))) == ["s1", "s2", "s3"]
        assert not held.sizes()

    async def test_one_that_is_held_after_its_cancellation_ends_too(self) -> None:
        yard = Yard()
        transactor = await run_batcher(yard, make_batcher(yard))
        cancel(yard, "s0")
        hold(yard, "s0")
        await drain(transactor)
        assert_cancelled_once(yard, "s0")

    async def test_one_that_comes_while_the_hold_is_read_back_is_not_missed(self) -> None:
        yard = Yard()
        hold(yard, "s0")

        class Interrupted(MemoryLog):
            async def read(
                self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
            ) -> AsyncIterator[Sequence[Record]]:
                async for records in super().read(starts, ends):
                    yield records
                    # The batcher has taken it in by now, and is not done with the partition.
                    if records[0].partition.topic == yard.catalogue.held:
                        cancel(yard, "s0")

        await drain(await run_batcher(yard, make_batcher(yard), Interrupted(yard.cluster)))
        assert_cancelled_once(yard, "s0")

    async def test_more_than_a_transaction_takes_end_one_after_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage, "RELEASED_MAX", 2)
        yard = Yard()
        names = [f"s{n}" for n in range(5)]
        for name in names:
            hold(yard, name)
        transactor = await run_batcher(yard, make_batcher(yard))
        cancel(yard, *names)
        await transactor.step()
        assert len(yard.results()) == 2
        await step_until(transactor, lambda: len(yard.results()) == 5, "all are cancelled")
        assert not yard.held()
        assert not yard.lane("boards-us", "batch")

    @pytest.mark.parametrize("point", ["begin", "append", "commit", "committed"])
    async def test_a_batcher_that_dies_leaves_one_end(self, point: Any) -> None:
        yard = Yard()
        hold(yard, "s0")
        cancel(yard, "s0")
        yard.cluster.crash = Crash(point)
        first = await run_batcher(yard, make_batcher(yard))
        with pytest.raises(ProcessKilledError):
            await first.step()
        await drain(await run_batcher(yard, make_batcher(yard)))
        assert_cancelled_once(yard, "s0")
        assert not yard.held()

    async def test_one_that_was_released_is_not_the_batchers_any_more(self) -> None:
        yard = Yard()
        for n in range(4):
            hold(yard, f"s{n}")
        transactor = await run_batcher(yard, make_batcher(yard))
        await transactor.step()
        cancel(yard, "s0")
        await drain(transactor)
        assert len(yard.lane("boards-us", "batch")) == 4
        assert not yard.results()


class TestAtAWorker:
    async def test_one_that_runs_is_stopped_and_makes_room(self) -> None:
        yard, backend = Yard(), ScriptedBackend()
        for n in range(5):
            place(yard, f"c{n}")
        _, transactor = await serve(yard, backend)
        await step_until(transactor, lambda: len(backend.running) == 4, "four of five run")
        cancel(yard, "c1")
        await step_until(transactor, yard.results, "the cancelled one has ended")
        assert_cancelled_once(yard, "c1")
        assert yard.results()["c1"].placement is not None
        assert backend.cancelled == ["c1"]
        await step_until(transactor, lambda: "c4" in backend.running, "the fifth runs")
        for name in ("c0", "c2", "c3", "c4"):
            backend.finish(name)
        await step_until(transactor, lambda: progress(yard) == Progress(5), "all have ended")
        statuses = [result.status for result in yard.results().values()]
        assert sorted(statuses) == ["cancelled", *["completed"] * 4]

    async def test_one_that_waits_for_its_turn_never_runs(self) -> None:
        yard, backend = Yard(), ScriptedBackend()
        for n in range(6):
            place(yard, f"c{n}")
        worker, transactor = await serve(yard, backend)
        await step_until(transactor, lambda: worker.queued == 2, "two wait")
        cancel(yard, "c4")
        assert worker.queued == 1
        await step_until(transactor, yard.results, "the cancelled one has ended")
        assert_cancelled_once(yard, "c4")
        for name in ("c0", "c1", "c2", "c3"):
            backend.finish(name)
        await step_until(transactor, lambda: "c5" in backend.running, "the last runs")
        assert "c4" not in backend.began

    async def test_one_that_comes_after_its_cancellation_never_runs(self) -> None:
        yard, backend = Yard(), ScriptedBackend()
        _, transactor = await serve(yard, backend)
        cancel(yard, "c0")
        place(yard, "c0")
        await step_until(transactor, yard.results, "it has ended")
        assert_cancelled_once(yard, "c0")
        assert not backend.began

    async def test_an_answer_that_is_there_already_is_kept(self) -> None:
        yard, backend = Yard(), ScriptedBackend()
        place(yard, "c0")
        worker, transactor = await serve(yard, backend)
        await step_until(transactor, lambda: backend.running, "it runs")
        backend.finish("c0")
        for _ in range(3):
            await asyncio.sleep(0)
        assert not worker.running
        cancel(yard, "c0")
        await step_until(transactor, yard.results, "it has ended")
        assert yard.results()["c0"].status == "completed"
        assert not yard.evidence("cancelled")

    @pytest.mark.parametrize("point", ["begin", "append", "commit", "committed"])
    async def test_a_worker_that_dies_leaves_one_end(self, point: Any) -> None:
        yard, backend = Yard(), ScriptedBackend()
        place(yard, "c0")
        _, first = await serve(yard, backend)
        await step_until(first, lambda: backend.running, "it runs")
        cancel(yard, "c0")
        yard.cluster.crash = Crash(point)
        with pytest.raises(ProcessKilledError):
            await step_until(first, lambda: False, "it is killed")
        _, second = await serve(yard, backend, "b")
        await step_until(second, yard.results, "its successor ends it")
        assert_cancelled_once(yard, "c0")
        assert progress(yard) == Progress(1)

    async def test_one_that_is_another_workers_by_then_is_left_to_it(self) -> None:
        yard, backend = Yard(), ScriptedBackend()
        place(yard, "c0")
        worker, transactor = await serve(yard, backend)
        await step_until(transactor, lambda: backend.running, "it runs")
        cancel(yard, "c0")
        await yard.cluster.assign(worker.group, {})
        await transactor.step()
        assert not yard.results()
        assert not worker.running


async def run_canceller(yard: Yard) -> Transactor:
    yard.cluster.members.clear()
    return await yard.run(Canceller(yard.evidence_writer(), yard.clock))


def publish(yard: Yard, key: bytes | None, value: bytes | None = None) -> None:
    yard.cluster.publish(Outgoing(yard.catalogue.cancellations, key, value))


class TestEvidence:
    async def test_each_cancellation_has_one_piece_though_nobody_knows_the_request(self) -> None:
        yard = Yard()
        publish(yard, b"nobody", b'{"reason": "a mistake"}')
        publish(yard, b"somebody")
        await drain(await run_canceller(yard))
        await drain(await run_canceller(yard))
        found = {e.request_id: (e.step, e.message) for e in yard.evidence()}
        assert found == {
            "nobody": ("cancel_requested", None),
            "somebody": ("cancel_requested", None),
        }
        assert len(yard.evidence()) == 2
        assert not yard.results()

    @pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"x" * 129])
    async def test_what_names_no_request_is_a_dead_letter(self, key: bytes | None) -> None:
        yard = Yard()
        publish(yard, key, b"v")
        await drain(await run_canceller(yard))
        assert [e.reason for e in yard.evidence()] == ["invalid_cancellation"]
        assert len(yard.dead_letters()) == 1

    async def test_evidence_that_is_refused_is_a_dead_letter_of_its_own(self) -> None:
        yard = Yard()
        publish(yard, b"a", b'{"reason": "a mistake"}')
        yard.cluster.refuse = lambda record: (
            b"cancel_requested" in (record.value or b"") and record.topic == yard.catalogue.evidence
        )
        canceller = Canceller(yard.evidence_writer(), yard.clock)
        await drain(await yard.run(canceller))
        assert [e.step for e in yard.evidence()] == ["dead_lettered"]
        assert len(yard.dead_letters()) == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, None),
        (b"", None),
        (b"{nonsense", None),
        (b"[]", None),
        (b'{"reason": 5}', None),
        (b'{"reason": "late", "other": 1}', "late"),
        (b'{"reason": "' + b"x" * 1000 + b'"}', "x" * 200),
    ],
)
def test_a_value_says_why_or_nothing(value: bytes | None, reason: str | None) -> None:
    assert parse_cancellation(b"a", value) == ("a", Cancellation(reason))


def test_a_key_is_an_id() -> None:
    with pytest.raises(BadRecordError, match="129 characters"):
        parse_cancellation(b"x" * 129, None)


@pytest.mark.parametrize("timestamp_ms", [-1, 2**63 - 1])
def test_a_cancellation_without_a_time_or_with_one_far_ahead_counts_from_now(
    timestamp_ms: int,
) -> None:
    yard = Yard()
    home = Partition(yard.catalogue.cancellations, 0)
    yard.cancellations.read(Record(home, 0, b"a", None, (), timestamp_ms))
    assert yard.cancellations.find("a") == Cancellation()
    yard.clock.at = START + CANCELLATION_S + 1
    assert yard.cancellations.find("a") is None


def test_a_cancellation_counts_for_a_day_and_the_oldest_are_forgotten_first() -> None:
    yard = Yard()
    told: list[str] = []
    known = Cancellations(yard.clock, cancellations_max=2)
    known.tell(told.append)
    known.add("old", LEFT, START - CANCELLATION_S - 1)
    assert known.find("old") is None
    for name in ("a", "b", "a", "c"):
        known.add(name, LEFT, START)
    assert told == ["a", "b", "a", "c"]
    assert [known.find(name) for name in ("a", "b", "c")] == [LEFT, None, LEFT]
    yard.clock.at = START + CANCELLATION_S + 1
    assert known.find("a") is None
