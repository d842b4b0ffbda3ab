"""A log that lost its end or was made anew: nothing old is served again, nothing new skipped."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from hold_cases import hold, make_batcher
from memory_log import CutOffError, MemoryLog
from stream_cases import START, Yard, drain, keys, make_router, make_signer, make_transactor
from tiers import seeds
from worker_cases import ScriptedBackend, make_worker, place

from streams.engine import continuity
from streams.engine.broken_log_recovery import NothingToRecoverError, RecoveryError, carry_out, plan
from streams.engine.continuity import BrokenLogError, check_continuity, newest_epoch
from streams.engine.log import LogError, Outgoing, Partition
from streams.engine.stage import Stage
from streams.engine.transactor import Transactor
from streams.metrics.gauges import broken_counts
from streams.metrics.registry import BROKEN
from topics import Progress, decode

HOME = Partition("yard.requests", 0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "RETRY_S", 0.0)
    monkeypatch.setattr(continuity, "LOOK_AGAIN_S", 0.0)


async def serve(yard: Yard, stage: Stage | None = None) -> Transactor:
    """Let a new process take all over and do what there is to do."""
    yard.cluster.members.clear()
    transactor = await yard.run(stage or make_router(yard))
    await drain(transactor)
    return transactor


async def after_a_loss() -> tuple[Yard, Transactor]:
    """Return a yard that has served six requests and then lost three, and who served them."""
    yard = Yard()
    for n in range(6):
        yard.publish(0, id=f"a{n}")
    transactor = await serve(yard)
    yard.cluster.lose_tail(HOME, 3)
    return yard, transactor


async def recover(
    yard: Yard, group: str, partition: Partition = HOME, at: int | None = None
) -> str:
    """Do what `shunter topics recover` does."""
    log, signer = (
        MemoryLog(yard.cluster, "operator"),
        make_signer(yard.catalogue, yard.clock, yard.digests),
    )
    found = await plan(log, yard.catalogue, signer, group, partition, at)
    await carry_out(log, yard.catalogue, signer, "recover/op", found, START)
    return found.message


def served(yard: Yard) -> list[str]:
    """Return what was sent to any pool, in the order of names."""
    return sorted(evidence.request_id for evidence in yard.evidence("placed"))


FIRST = [f"a{n}" for n in range(6)]
NEW = [f"new{n}" for n in range(5)]


async def test_a_tail_that_was_lost_stops_its_partition_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    yard, _ = await after_a_loss()
    yard.publish(1, id="elsewhere")
    transactor = await serve(yard)
    assert "yard.requests[0] has lost its end: yard.router has done all below 6" in caplog.text
    assert "ends at 3" in caplog.text
    assert "`shunter topics recover yard.router yard.requests 0`" in caplog.text
    assert served(yard) == [*FIRST, "elsewhere"]
    # It grows past where we stood, under another leader: by its end alone nobody would know.
    for n in range(5):
        yard.publish(0, id=f"new{n}")
    await drain(transactor)
    await serve(yard)
    assert served(yard) == [*FIRST, "elsewhere"]
    message = await recover(yard, "yard.router")
    assert "has lost its end at 3: all below 6 was done" in message
    assert "All below 3 counts as done" in message
    await serve(yard)
    assert served(yard) == [*FIRST, "elsewhere", *NEW]
    (evidence,) = yard.evidence("recovered")
    assert (evidence.request_id, evidence.message) == ("yard.requests/0", message)


async def test_who_waits_goes_on_by_itself_once_it_is_recovered() -> None:
    yard, _ = await after_a_loss()
    yard.publish(0, id="new")
    transactor = await serve(yard)
    assert served(yard) == FIRST
    counted = broken_counts("yard.router", lambda: transactor.broken)
    assert list(counted()) == [(BROKEN, ("yard.router", "yard.requests"), 1)]
    await recover(yard, "yard.router")
    await transactor.step()
    await drain(transactor)
    assert list(counted()) == []
    assert served(yard) == [*FIRST, "new"]


async def test_who_waits_for_a_recovery_survives_a_broker_that_is_gone() -> None:
    """Its other partitions would go to nobody else, and be lost with it each time."""
    yard, _ = await after_a_loss()
    yard.cluster.members.clear()
    log = MemoryLog(yard.cluster)
    transactor = await yard.run(make_router(yard), log)
    await drain(transactor)
    bounds, log.bounds = log.bounds, gone  # type: ignore[method-assign,assignment]
    yard.publish(1, id="elsewhere")
    await drain(transactor)
    assert served(yard) == [*FIRST, "elsewhere"]
    log.bounds = bounds  # type: ignore[method-assign]
    yard.publish(0, id="new")
    await recover(yard, "yard.router")
    await transactor.step()
    await drain(transactor)
    assert served(yard) == [*FIRST, "elsewhere", "new"]


async def gone(*_: object) -> Any:
    """Answer as a broker does that is gone."""
    raise CutOffError("the broker is gone")


async def test_a_tail_lost_under_a_member_is_found_by_the_next_record() -> None:
    yard, transactor = await after_a_loss()
    for n in range(5):
        yard.publish(0, id=f"new{n}")
    with pytest.raises(BrokenLogError, match="ends at 3"):
        await drain(transactor)
    assert served(yard) == FIRST


async def test_a_tail_lost_under_a_member_is_found_though_nothing_stands_beyond_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else those requests wait for the next one, for ever on a quiet partition."""
    monkeypatch.setattr(continuity, "QUIET_LOOK_S", 0.0)
    yard, transactor = await after_a_loss()
    for n in range(3):
        yard.publish(0, id=f"new{n}")
    with pytest.raises(BrokenLogError, match="ends at 3"):
        await drain(transactor)
    assert served(yard) == FIRST
    await recover(yard, "yard.router")
    await serve(yard)
    assert served(yard) == [*FIRST, *NEW[:3]]


async def test_a_quiet_partition_whose_leader_does_not_answer_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(continuity, "QUIET_LOOK_S", 0.0)
    monkeypatch.setattr(continuity, "QUIET_ANSWER_S_MAX", 0.01)
    yard = Yard()
    yard.publish(0, id="a0")
    log = MemoryLog(yard.cluster)
    transactor = await yard.run(make_router(yard), log)
    await drain(transactor)
    for epoch_end in (gone, asyncio.Event().wait):
        log.epoch_end = lambda *_, ask=epoch_end: ask()  # type: ignore[method-assign]
        await drain(transactor)
    assert served(yard) == ["a0"]


async def test_what_a_member_tells_the_group_after_the_recovery_skips_nothing() -> None:
    """It had not noticed; found by the simulation, seed 866."""
    yard, _ = await after_a_loss()
    for n in range(5):
        yard.publish(0, id=f"new{n}")
    await recover(yard, "yard.router")
    yard.cluster.offsets["yard.router", HOME] = 6
    await serve(yard)
    assert served(yard) == [*FIRST, *NEW]
    assert yard.cluster.offsets["yard.router", HOME] == 3


async def test_a_recovery_of_what_went_on_meanwhile_is_refused() -> None:
    """Both would write the next root of one chain; found by the simulation, seed 1302."""
    yard, _ = await after_a_loss()
    log = MemoryLog(yard.cluster, "operator")
    signer = make_signer(yard.catalogue, yard.clock, yard.digests)
    stale = await plan(log, yard.catalogue, signer, "yard.router", HOME, None)
    await recover(yard, "yard.router")
    with pytest.raises(LogError, match="has gone on with"):
        await carry_out(log, yard.catalogue, signer, "recover/op", stale, START)
    assert len(yard.evidence("recovered")) == 1


async def test_a_topic_that_was_made_again_is_another() -> None:
    yard = Yard()
    for n in range(3):
        yard.publish(0, id=f"a{n}")
    await serve(yard)
    yard.cluster.recreate("yard.requests")
    for n in range(5):
        yard.publish(0, id=f"new{n}")
    await serve(yard)
    assert served(yard) == FIRST[:3]
    message = await recover(yard, "yard.router")
    assert "was deleted and made again: all below 3 of the old one was done" in message
    await serve(yard)
    assert served(yard) == [*FIRST[:3], *NEW]


async def test_a_lane_that_was_made_again_drops_no_request_by_stale_finished_offsets() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(3):
        place(yard, f"c{n}", number=0)
    worker = make_worker(yard, backend)
    transactor = await yard.run(worker)
    await transactor.step()
    backend.finish("c2")
    for _ in range(5):
        await transactor.step()
    lane = yard.catalogue.pool_lane("premium-eu", "direct")
    newest = yard.cluster.records(yard.catalogue.progress)[-1]
    assert decode(Progress, newest.value or b"").finished == (2,)
    yard.cluster.recreate(lane)
    for n in range(3):
        place(yard, f"new{n}", number=0)
    again = ScriptedBackend()
    await serve(yard, make_worker(yard, again))
    assert again.running == []
    await recover(yard, worker.group, Partition(lane, 0))
    transactor = await serve(yard, make_worker(yard, again))
    assert again.running == ["new0", "new1", "new2"]
    await transactor.stop()


async def half_finished(yard: Yard) -> Partition:
    """Return a lane of four requests: a worker has finished the last, and runs the others."""
    backend = ScriptedBackend()
    for n in range(4):
        place(yard, f"c{n}", number=0)
    transactor = await yard.run(make_worker(yard, backend))
    await transactor.step()
    backend.finish("c3")
    for _ in range(5):
        await transactor.step()
    newest = yard.cluster.records(yard.catalogue.progress)[-1]
    assert decode(Progress, newest.value or b"").finished == (3,)
    return Partition(yard.catalogue.pool_lane("premium-eu", "direct"), 0)


async def test_a_lane_that_lost_what_is_finished_above_an_open_request_drops_no_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All below the lowest open offset is there, but 3 is another request by now."""
    yard = Yard()
    lane = await half_finished(yard)
    yard.cluster.lose_tail(lane, 2)
    for n in range(4):
        place(yard, f"new{n}", number=0)
    again = ScriptedBackend()
    worker = make_worker(yard, again)
    await serve(yard, worker)
    assert again.running == []
    assert "has done all below 0 and 1 from there on, and what it has read ends at 2" in caplog.text
    message = await recover(yard, worker.group, lane)
    assert "All below 0 counts as done, and what stands from there on is taken" in message
    transactor = await serve(yard, make_worker(yard, again))
    assert again.running == ["c0", "c1", "new0", "new1"]
    await transactor.stop()


async def test_a_recovery_keeps_what_is_finished_below_the_end_that_was_lost() -> None:
    yard = Yard()
    lane = await half_finished(yard)
    # Another leads when the next is read.
    yard.cluster.lose_tail(lane, yard.cluster.logs[lane].end)
    place(yard, "c4", number=0)
    backend = ScriptedBackend()
    transactor = await serve(yard, make_worker(yard, backend))
    backend.finish("c0")
    for _ in range(5):
        await transactor.step()
    newest = decode(Progress, yard.cluster.records(yard.catalogue.progress)[-1].value or b"")
    assert (newest.next_offset, newest.finished, newest.leader_epoch) == (1, (3,), 1)
    place(yard, "c5", number=0)
    backend.finish("c4")
    for _ in range(5):
        await transactor.step()
    yard.cluster.lose_tail(lane, 4)
    again = ScriptedBackend()
    worker = make_worker(yard, again)
    await serve(yard, worker)
    message = await recover(yard, worker.group, lane)
    assert "All below 1 counts as done, so do 1 from there on, and what else stands" in message
    for n in range(2):
        place(yard, f"new{n}", number=0)
    transactor = await serve(yard, make_worker(yard, again))
    assert again.running == ["c1", "c2", "new0", "new1"]
    await transactor.stop()


async def test_what_is_read_of_an_older_leader_accuses_none_of_what_is_finished() -> None:
    """A new owner reads what a first leader wrote, and knows what is finished of a second."""
    yard = Yard()
    lane = Partition(yard.catalogue.pool_lane("premium-eu", "direct"), 0)
    for n in range(3):
        place(yard, f"c{n}", number=0)
    yard.cluster.lose_tail(lane, 3)
    place(yard, "c3", number=0)
    backend = ScriptedBackend()
    transactor = await yard.run(make_worker(yard, backend))
    await transactor.step()
    backend.finish("c3")
    for _ in range(5):
        await transactor.step()
    yard.cluster.members.clear()
    backend = ScriptedBackend()
    worker = make_worker(yard, backend)
    transactor = await yard.run(worker, records_max=1)
    await transactor.step()
    backend.finish("c0")
    for _ in range(5):
        await transactor.step()
    newest = decode(Progress, yard.cluster.records(yard.catalogue.progress)[-1].value or b"")
    assert (newest.next_offset, newest.finished, newest.leader_epoch) == (1, (3,), 1)
    with pytest.raises(RecoveryError, match="fits the log"):
        await recover(yard, worker.group, lane)


@pytest.mark.parametrize("is_another", [False, True])
async def test_many_broken_partitions_are_found_as_soon_as_one(
    is_another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they took longer than a takeover may: the process ended, for ever."""
    yard = Yard()
    for n in range(4):
        for each in range(2):
            yard.publish(n, id=f"a{n}-{each}")
    await serve(yard)
    if is_another:
        yard.cluster.recreate("yard.requests")
    else:
        for n in range(3):
            yard.cluster.lose_tail(Partition("yard.requests", n), 1)
        yard.publish(3, id="new")
    monkeypatch.setattr(continuity, "RETRY_S", 0.125)
    sleep, slept = asyncio.sleep, 0

    async def count_sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds == continuity.RETRY_S
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", count_sleep)
    transactor = await serve(yard)
    assert slept == continuity.TRIES - 1
    assert len(list(transactor._broken)) == (4 if is_another else 3)
    assert ("new" in served(yard)) is not is_another


async def test_a_hold_that_lost_its_tombstones_releases_nothing_twice() -> None:
    yard = Yard()
    home = hold(yard, "gone", partition=0).partition
    yard.clock.at = START + 45
    transactor = await serve(yard, make_batcher(yard))
    assert keys(yard.lane("boards-us", "batch")) == ["gone"]
    # Its own tombstones are behind it a second later.
    yard.clock.at += 2
    await drain(transactor)
    await transactor.step()
    hold(yard, "still", partition=0)
    yard.cluster.lose_tail(home, 1)
    await serve(yard, make_batcher(yard))
    message = await recover(yard, "yard.batcher", home)
    assert "1 requests were released before, and are not held again" in message
    yard.clock.at = START + 90
    await serve(yard, make_batcher(yard))
    assert keys(yard.lane("boards-us", "batch")) == ["gone"]
    assert not yard.held()


async def test_a_hold_that_is_restored_past_its_progress_under_another_leader_is_whole() -> None:
    yard = Yard()
    transactor = await serve(yard, make_batcher(yard))
    home = hold(yard, "first", partition=0).partition
    await drain(transactor)
    yard.clock.at = START + 45
    await drain(transactor)
    await transactor.step()
    log = yard.cluster.logs[home]
    # Another leads from here on, and nothing is lost.
    yard.cluster.lose_tail(home, log.end)
    assert log.epochs[-1] == (1, log.end)
    hold(yard, "second", partition=0)
    transactor = await serve(yard, make_batcher(yard))
    hold(yard, "third", partition=0)
    await drain(transactor)
    yard.clock.at = START + 90
    await drain(transactor)
    await serve(yard, make_batcher(yard))
    released = ["first", "second", "third"]
    assert sorted(keys(yard.lane("boards-us", "batch"))) == released


async def test_a_hold_that_loses_its_end_before_anything_new_is_read_passes_nothing_over() -> None:
    """All that was known of it was where it ended when it was restored."""
    yard = Yard()
    for n in range(3):
        home = hold(yard, f"h{n}", partition=0).partition
    transactor = await serve(yard, make_batcher(yard))
    yard.cluster.lose_tail(home, 2)
    for n in range(2):
        hold(yard, f"new{n}", partition=0)
    with pytest.raises(BrokenLogError, match="ends at 2"):
        await drain(transactor)
    yard.clock.at = START + 90
    message = await recover(yard, "yard.batcher", home)
    assert "All below 2 counts as done" in message
    await serve(yard, make_batcher(yard))
    assert sorted(keys(yard.lane("boards-us", "batch"))) == ["h0", "h1", "new0", "new1"]


async def test_a_hold_whose_end_is_compacted_is_read_on_where_progress_stands() -> None:
    yard = Yard()
    for n in range(3):
        home = hold(yard, f"h{n}", partition=0).partition
    yard.clock.at = START + 90
    await serve(yard, make_batcher(yard))
    assert len(yard.lane("boards-us", "batch")) == 3
    transactor = await serve(yard, make_batcher(yard))
    yard.clock.at += 2
    await drain(transactor)
    await transactor.step()
    log = yard.cluster.logs[home]
    # As the cleaner does with tombstones of yesterday.
    log.entries[:] = [entry._replace(record=None) for entry in log.entries]
    hold(yard, "next", partition=0)
    transactor = await serve(yard, make_batcher(yard))
    yard.clock.at += 90
    await drain(transactor)
    assert sorted(keys(yard.lane("boards-us", "batch"))) == ["h0", "h1", "h2", "next"]


class NewLeader(MemoryLog):
    """Counts how often it is asked for more than the end of an epoch."""

    asked = 0

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        self.asked += 1
        return await super().bounds(partitions)


@pytest.mark.parametrize("lost", [0, 2])
async def test_a_new_leader_is_asked_for_no_more_than_it_takes_to_know_that_nothing_is_lost(
    lost: int,
) -> None:
    """After a broker's end each partition of a process has one: seven questions each are many."""
    yard = Yard()
    for n in range(4):
        yard.publish(0, id=f"a{n}")
    yard.cluster.lose_tail(HOME, 4 - lost)
    for n in range(1 + lost):
        yard.publish(0, id=f"new{n}")
    log = NewLeader(yard.cluster, "reader")
    (record,) = [r for r in yard.cluster.records(HOME.topic, 0) if r.offset == 4]
    if lost:
        with pytest.raises(BrokenLogError):
            await newest_epoch(log, "group", [record], 4, 0)
    else:
        assert await newest_epoch(log, "group", [record], 4, 0) == 1
        assert not log.asked


async def test_where_the_log_can_not_tell_it_must_be_said_from_where() -> None:
    yard = Yard()
    for n in range(6):
        yard.publish(0, id=f"a{n}")
    await serve(yard)
    # As a version before this one wrote it.
    newest = yard.cluster.records(yard.catalogue.progress)[-1]
    old = Outgoing("yard.progress", newest.key, b'{"next_offset":6}', [], 0)
    yard.cluster.publish(old)
    yard.cluster.lose_tail(HOME, 3)
    yard.publish(0, id="new")
    await serve(yard)
    with pytest.raises(RecoveryError, match="say it with --at, an offset from 0 to 4"):
        await recover(yard, "yard.router")
    with pytest.raises(RecoveryError, match="has offsets 0 to 4, and --at is 5"):
        await recover(yard, "yard.router", at=5)
    await recover(yard, "yard.router", at=3)
    await serve(yard)
    assert served(yard) == [*FIRST, "new"]


async def test_a_log_that_is_whole_has_nothing_to_recover() -> None:
    yard = Yard()
    with pytest.raises(RecoveryError, match="has no progress"):
        await recover(yard, "yard.router")
    yard.publish(0, id="a")
    await serve(yard)
    with pytest.raises(RecoveryError, match="it stands at 1; there is nothing to recover"):
        await recover(yard, "yard.router", at=0)


async def test_a_leader_that_was_deposed_a_moment_ago_is_asked_again() -> None:
    yard = Yard()
    for n in range(6):
        yard.publish(0, id=f"a{n}")
    log = MemoryLog(yard.cluster)
    bounds, asked = log.bounds, []

    async def stale(partitions: object) -> object:
        asked.append(1)
        return {HOME: (0, 3)} if len(asked) < 3 else await bounds([HOME])

    log.bounds = stale  # type: ignore[method-assign,assignment]
    await check_continuity(log, "yard.router", HOME, Progress(6))
    assert len(asked) == 3


async def test_what_is_found_broken_while_it_is_taken_away_is_not_taken_over_here() -> None:
    yard, _ = await after_a_loss()
    yard.cluster.members.clear()
    log, stage = MemoryLog(yard.cluster, "old"), make_router(yard)
    transactor = make_transactor(log, stage, yard.catalogue.progress)
    await transactor.start()
    await yard.cluster.assign(stage.group, {"old": [HOME]})
    find, moving = transactor._broken.find, []

    async def lose_meanwhile(*args: Any) -> list[Partition]:
        moving.append(asyncio.create_task(log.lose_all()))
        for _ in range(5):
            await asyncio.sleep(0)
        assert transactor._is_revoked
        return await find(*args)

    transactor._broken.find = lose_meanwhile  # type: ignore[method-assign,assignment]
    await transactor.take_over()
    await moving[0]
    await recover(yard, stage.group)
    await transactor.step()
    assert not transactor.partitions


def elect(yard: Yard) -> None:
    """Have a leader elected that has all, as most elections do."""
    yard.cluster.lose_tail(HOME, yard.cluster.logs[HOME].end)


@pytest.mark.parametrize("seed", seeds(10, 40))
async def test_whatever_is_lost_whenever_nothing_is_served_twice_or_skipped(seed: int) -> None:
    """Publish, serve, elect, lose and recover in any order; then all that is left is served."""
    print("seed", seed)
    rng, yard = random.Random(seed), Yard()
    sent: list[str] = []

    def publish() -> None:
        for _ in range(rng.randint(1, 4)):
            sent.append(f"r{len(sent)}")
            yard.publish(0, id=sent[-1])

    async def process() -> None:
        await serve(yard)

    async def lose() -> None:
        log = yard.cluster.logs[HOME]
        end = rng.randint(0, log.end)
        done = {k.decode() for k in (r.key or b"" for r in yard.cluster.records(HOME.topic, 0))}
        yard.cluster.lose_tail(HOME, end)
        left = {(r.key or b"").decode() for r in yard.cluster.records(HOME.topic, 0)}
        lost.update(done - left)

    lost: set[str] = set()
    steps: list[Callable[[], object]] = [publish, process, lambda: elect(yard)]
    for _ in range(15):
        step = rng.choice([*steps, lose, publish, process])
        found = step()
        if found is not None:
            await found  # type: ignore[misc]
        if rng.random() < 0.5:
            await heal(yard)
    await heal(yard)
    await serve(yard)
    count = served(yard)
    assert len(count) == len(set(count)), "served twice"
    assert set(sent) - set(count) <= lost, "skipped"


async def heal(yard: Yard) -> None:
    with contextlib.suppress(NothingToRecoverError):
        await recover(yard, "yard.router")


async def test_what_is_taken_away_while_the_group_is_set_back_is_not_restored_here() -> None:
    """A rebalance would wait for that, however long it takes."""
    yard, _ = await after_a_loss()
    await recover(yard, "yard.router")
    yard.cluster.members.clear()
    log, stage, restored = MemoryLog(yard.cluster, "old"), make_router(yard), []
    transactor = make_transactor(log, stage, yard.catalogue.progress)
    await transactor.start()
    await yard.cluster.assign(stage.group, {"old": [HOME]})
    commit_offsets, moving = log.commit_offsets, []

    async def lose_meanwhile(offsets: Mapping[Partition, int]) -> None:
        moving.append(asyncio.create_task(log.lose_all()))
        for _ in range(5):
            await asyncio.sleep(0)
        await commit_offsets(offsets)

    async def restore(*args: Any) -> None:
        restored.append(args)

    log.commit_offsets = lose_meanwhile  # type: ignore[method-assign]
    stage.restore = restore  # type: ignore[method-assign,assignment]
    await transactor.take_over()
    await moving[0]
    assert not restored
    assert not transactor.partitions
