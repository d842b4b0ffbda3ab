"""The batcher on the log in memory: what waits, what goes together, and what gives up."""

import asyncio
from dataclasses import replace
from zlib import crc32

import pytest
from hold_cases import hold, look, make_batcher, run
from memory_log import MemoryLog
from stream_cases import START, TRACEPARENT, Yard, drain, header, heartbeat, keys

from policies.batching import windows
from policies.batching.windows import Windows
from streams.batcher import payload_cache
from streams.batcher import stage as batcher
from streams.batcher.partition_state import COMMIT_EVERY_S
from streams.engine.log import LogError, Outgoing, Partition
from topics import (
    Batch,
    Cancellation,
    Envelope,
    Fallback,
    Placement,
    Profile,
    Progress,
    VariantStatus,
    decode,
)
from topics.records import headers as h


async def test_a_full_batch_goes_out_whole_in_one_transaction() -> None:
    yard = Yard()
    held = [hold(yard, f"s{n}", headers=(("own", b"\xff"),)) for n in range(4)]
    batcher_view = (await look(yard))._situation.view
    members = yard.lane("boards-us", "batch")
    assert sorted(keys(members)) == ["s0", "s1", "s2", "s3"]
    assert batcher_view.load("boards-us").running_by_variant == {"yard-8b-int8": 4}
    batch_id = f"{held[0].partition.number}-0"
    assert {m.partition.number for m in members} == {crc32(batch_id.encode()) % 4}
    assert [h.read_batch(m.headers) for m in members] == [
        Batch(batch_id, index, 4) for index in range(4)
    ]
    sent = {record.key: record.value for record in held}
    for member in members:
        assert member.value is sent[member.key], "the payload was copied"
        assert h.find(member.headers, "own") == b"\xff"
        assert header(member, h.RELEASED_AT) == repr(START)
        assert h.read(member.headers, h.PLACEMENT, Placement) == Placement(
            "boards-us", "slow", "yard-8b-int8", "int8", "us-east", "batch", batch_id
        )
        assert h.find(member.headers, h.HELD_AT) is None
    assert not yard.held()

    evidence = yard.evidence("released")
    assert sorted(e.request_id for e in evidence) == ["s0", "s1", "s2", "s3"]
    assert [len(e.candidates) for e in evidence].count(3) == 1, "candidates stand at one member"
    for each in evidence:
        assert each.hold is not None
        assert (each.hold.reason, each.hold.held_s) == ("full", 0.0)
        assert each.placement is not None
        assert each.placement.batch_id == batch_id
        assert each.source.topic == yard.catalogue.held
    written = [
        *members,
        *yard.cluster.records(yard.catalogue.evidence),
        *(r for r in yard.cluster.records(yard.catalogue.held) if r.value is None),
        *yard.cluster.records(yard.catalogue.progress),
    ]
    assert len(written) == 13
    assert len({id(yard.cluster.transaction_of(record)) for record in written}) == 1


async def test_what_is_more_than_full_waits_for_its_own_batch() -> None:
    yard = Yard()
    for n in range(6):
        hold(yard, f"s{n}")
    batcher = await look(yard)
    assert len(yard.lane("boards-us", "batch")) == 4
    assert sum(batcher.sizes().values()) == 2
    assert len(yard.held()) == 2


async def test_the_window_closes_on_a_batch_that_never_filled() -> None:
    yard = Yard()
    hold(yard, "s0")
    hold(yard, "s1", held_at=START + 10)
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    for second in (0, 20, 44):
        yard.clock.at = START + second
        await transactor.step()
        assert not yard.lane("boards-us", "batch")
        assert 0 <= batcher.idle_s() <= 45 - second
    yard.clock.at = START + 45
    await transactor.step()
    members = yard.lane("boards-us", "batch")
    assert [header(m, h.BATCH_SIZE) for m in members] == ["2", "2"]
    waited = {e.request_id: e.hold.held_s for e in yard.evidence("released") if e.hold}
    assert waited == {"s0": 45.0, "s1": 35.0}
    assert {e.reason for e in yard.evidence("released")} == {"window"}


async def test_a_batch_goes_while_its_first_deadline_can_still_be_met() -> None:
    yard = Yard()
    hold(yard, "s0", deadline=START + 20)
    transactor = await run(yard, make_batcher(yard))
    while not yard.lane("boards-us", "batch"):
        assert yard.clock.at < START + 20
        await transactor.step()
        yard.clock.at += 0.5
    (member,) = yard.lane("boards-us", "batch")
    (evidence,) = yard.evidence("released")
    assert evidence.hold is not None
    assert evidence.hold.reason == "slack"
    assert -0.5 <= evidence.hold.slack_s <= 0
    # Released in time for the margin of the policy, and not much before.
    promised = h.read(member.headers, h.PROMISED, Envelope)
    assert 18 - 0.5 <= promised.finish_s <= 18 + 0.5


async def test_groups_that_must_not_mix_do_not() -> None:
    yard = Yard()
    for n in range(2):
        hold(yard, f"any{n}")
        hold(yard, f"eu{n}", constraints={"data_class": "regulated"})
    yard.clock.at = START + 45
    await look(yard)
    batches: dict[str | None, set[str]] = {}
    for pool in yard.options.by_pool:
        for member in yard.lane(pool, "batch"):
            batches.setdefault(header(member, h.BATCH_ID), set()).update(keys([member]))
    assert sorted(map(sorted, batches.values())) == [["any0", "any1"], ["eu0", "eu1"]]
    assert {"eu0", "eu1"} <= set(keys(yard.lane("premium-eu", "batch")))


async def test_a_tombstone_ends_the_hold_without_a_word() -> None:
    yard = Yard()
    record = hold(yard, "s0")
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    await transactor.step()
    tombstone = Outgoing(yard.catalogue.held, b"s0", None, partition=record.partition.number)
    yard.cluster.publish(tombstone)
    await transactor.step()
    assert batcher.sizes() == {}
    yard.clock.at = START + 10_000
    await transactor.step()
    assert not yard.evidence()
    assert not yard.results()


async def test_a_request_held_twice_goes_once_as_it_was_held_last() -> None:
    yard = Yard()
    hold(yard, "s0", metadata=1)
    last = hold(yard, "s0", metadata=2)
    yard.clock.at = START + 45
    await look(yard)
    (member,) = yard.lane("boards-us", "batch")
    assert member.value is last.value


async def test_a_deadline_that_passes_in_the_hold_is_told() -> None:
    yard = Yard(live=[])
    hold(yard, "s0", deadline=START + 30, headers=(("traceparent", TRACEPARENT),), metadata="m")
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = START + 29.9
    await transactor.step()
    assert not yard.results()
    yard.clock.at = START + 30.2
    await transactor.step()
    result = yard.results()["s0"]
    assert (result.status, result.metadata) == ("expired", "m")
    assert result.error is not None
    assert result.error.code == "deadline_passed"
    assert result.trace_id == TRACEPARENT.decode()[3:35]
    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.reason) == ("expired", "deadline_passed")
    assert not yard.held()


async def test_a_request_for_which_no_pool_comes_is_rejected_after_its_longest_wait() -> None:
    yard = Yard(live=[])
    hold(yard, "c0", task="chat")
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = START + 29.9
    await transactor.step()
    assert not yard.results()
    yard.clock.at = START + 30.2
    await transactor.step()
    result = yard.results()["c0"]
    assert result.status == "rejected"
    assert result.error is not None
    assert result.error.code == "pool_unavailable"
    assert result.error.details == {
        "premium-us": "pool_unavailable",
        "premium-eu": "pool_unavailable",
        "boards-us": "lane",
    }
    assert "premium-eu has no live worker" in result.error.message
    assert [e.step for e in yard.evidence()] == ["rejected"]
    assert not yard.held()


async def test_a_rejection_tells_a_failing_server_from_a_pool_without_workers() -> None:
    yard = Yard(live=[])
    batcher, pool = make_batcher(yard), "premium-eu"
    failing = {o.variant: VariantStatus(circuit="open") for o in yard.options.by_pool[pool]}
    batcher._situation.view.report(heartbeat(yard.options, pool, START, variants=failing))
    hold(yard, "c0", task="chat")
    transactor = await run(yard, batcher)
    yard.clock.at = START + 30.2
    await transactor.step()
    error = yard.results()["c0"].error
    assert error is not None
    assert error.code == "pool_unavailable"
    assert error.details is not None
    assert error.details["premium-us"] == "pool_unavailable"
    assert error.details["premium-eu"] == "circuit_open"
    assert "premium-us has no live worker" in error.message
    assert "premium-eu fails, and gets no work until it answers a probe" in error.message
    (evidence,) = yard.evidence()
    assert evidence.message == error.message


async def test_one_that_was_tried_before_it_waited_in_vain_has_failed_and_tells_where() -> None:
    yard = Yard(live=[])
    record = hold(yard, "c0", task="chat")
    tried = replace(
        h.read(record.headers, h.PROFILE, Profile),
        attempt=2,
        fallbacks=(Fallback("premium-eu", "connect"),),
    )
    headers = h.replaced(record.headers, h.encoded(profile=tried))
    _, number = record.partition
    yard.cluster.publish(Outgoing(yard.catalogue.held, b"c0", record.value, headers, number))
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = START + 30.2
    await transactor.step()
    result = yard.results()["c0"]
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error.details or {})["premium-eu"] == "connect"


async def test_a_pool_that_comes_alive_takes_what_waited_for_it_at_once() -> None:
    yard = Yard(live=[])
    for n in range(3):
        hold(yard, f"c{n}", ingest_partition=n, task="chat")
    situation = yard.situation()
    batcher = make_batcher(yard)
    batcher._placer.take(situation)
    transactor = await run(yard, batcher)
    await transactor.step()
    yard.clock.at = START + 5
    assert batcher.idle_s() <= 0
    await transactor.step()
    assert not yard.evidence()
    situation.view.report(heartbeat(yard.options, "premium-us", yard.clock.at))
    yard.clock.at += windows.LOOK_S_MIN + 0.25
    await transactor.step()
    placed = yard.lane("premium-us", "direct")
    assert {(r.key, r.partition.number) for r in placed} == {(b"c0", 0), (b"c1", 1), (b"c2", 2)}
    for record in placed:
        assert h.read_batch(record.headers) is None
        assert h.read(record.headers, h.PLACEMENT, Placement).path == "direct"
    assert {e.reason for e in yard.evidence("released")} == {"pool_available"}
    assert not yard.held()


@pytest.mark.parametrize("culprit", [0, 1, 3])
async def test_a_member_that_the_lane_refuses_leaves_and_the_others_go(culprit: int) -> None:
    yard = Yard()
    for n in range(4):
        hold(yard, f"s{n}", metadata=n)
    lane = yard.catalogue.pool_lane("boards-us", "batch")
    bad = f"s{culprit}"
    yard.cluster.refuse = lambda r: r.topic == lane and r.key == bad.encode()
    await look(yard)
    rest = [f"s{n}" for n in range(4) if n != culprit]
    members = yard.lane("boards-us", "batch")
    assert sorted(keys(members)) == rest
    assert [(header(m, h.BATCH_INDEX), header(m, h.BATCH_SIZE)) for m in members] == [
        ("0", "3"),
        ("1", "3"),
        ("2", "3"),
    ]
    assert len({header(m, h.BATCH_ID) for m in members}) == 1
    (result,) = yard.results().values()
    assert (result.id, result.status, result.metadata) == (bad, "failed", culprit)
    (letter,) = yard.dead_letters()
    assert letter.key == bad.encode()
    assert header(letter, h.REASON) == "refused"
    assert sorted(e.request_id for e in yard.evidence("released")) == rest
    assert not yard.held()


async def test_no_more_is_taken_than_there_is_room_for_and_partitions_share_it() -> None:
    yard = Yard()
    first, second = (
        Partition(yard.catalogue.held, hold(yard, name, partition=number).partition.number)
        for number, name in enumerate(("p0", "p1"))
    )
    batcher = make_batcher(yard, held_records_max=3)
    transactor = await run(yard, batcher)
    assert batcher.wants(first)
    hold(yard, "p0-2", partition=0)
    await transactor.step()
    assert not batcher.wants(first)
    assert not batcher.wants(second)
    hold(yard, "p1-2", partition=1)
    await transactor.step()
    assert sum(batcher.sizes().values()) == 3, "one more was taken"
    yard.clock.at = START + 45
    await transactor.step()
    assert batcher.wants(second)
    await transactor.step()
    await transactor.step()
    assert sorted(keys(yard.lane("boards-us", "batch"))) == ["p0", "p0-2", "p1", "p1-2"]


async def test_how_many_are_held_is_known_without_a_look_at_each_partition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step asks for each partition: with a hundred of them that took a millisecond."""
    yard = Yard()
    stage = make_batcher(yard)
    transactor = await run(yard, stage)
    homes = [Partition(yard.catalogue.held, n) for n in range(yard.catalogue.partitions)]
    count, asked = Windows.__len__, 0

    def counted(windows: Windows) -> int:
        nonlocal asked
        asked += 1
        return count(windows)

    def is_exact() -> bool:
        nonlocal asked
        held = sum(count(windows) for windows in stage.windows())
        asked, found = 0, []
        for most in (held, held + 1):
            stage.held_records_max = most
            found += [stage.wants(home) for home in homes]
        stage.held_records_max = 1000
        return (asked, found) == (0, [False] * len(homes) + [True] * len(homes))

    monkeypatch.setattr(Windows, "__len__", counted)
    for n in range(6):
        hold(yard, f"s{n}", partition=n % 2)
    # Once more under its id, and cancelled by a client.
    hold(yard, "s1", partition=1)
    await transactor.step()
    assert sum(stage.sizes().values()) == 6
    assert is_exact()
    yard.cancellations.add("s3", Cancellation(), START)
    await transactor.step()
    assert sum(stage.sizes().values()) == 5
    assert is_exact()
    stage.forget(homes[0])
    assert sum(stage.sizes().values()) == 2
    assert is_exact()
    for _ in range(2):
        await stage.restore(homes[0], None, MemoryLog(yard.cluster, "again"))
    assert sum(stage.sizes().values()) == 5
    assert is_exact()
    yard.clock.at = START + 45
    await drain(transactor)
    assert not stage.sizes()
    assert is_exact()


async def test_more_than_a_transaction_should_hold_is_released_in_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "RELEASED_MAX", 4)
    yard = Yard()
    for n in range(12):
        hold(yard, f"s{n}")
    transactor = await run(yard, make_batcher(yard))
    for released in (4, 8, 12):
        await transactor.step()
        assert len(yard.lane("boards-us", "batch")) == released


async def test_what_is_released_at_once_has_a_limit_in_bytes_and_batches_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()
    for n in range(12):
        hold(yard, f"s{n}", metadata="x" * 1000)
    hold(yard, "long", metadata="x" * 20_000)
    monkeypatch.setattr(batcher, "RELEASED_BYTES_MAX", 10_000)
    monkeypatch.setattr(payload_cache, "SMALL_BYTES", 100)
    held = make_batcher(yard, held_payload_bytes_max=5_000)
    transactor = await run(yard, held)
    most = 0
    for released in (4, 8, 12):
        await transactor.step()
        assert len(yard.lane("boards-us", "batch")) == released
        assert held.idle_s() <= 0 or released == 12, "what is left is not due"
        most = max(most, held.room.bytes_used)
    assert most <= 15_000
    yard.clock.at = START + 45
    await transactor.step()
    assert "long" in keys(yard.lane("boards-us", "batch")), "what is larger by itself does not go"
    sizes = {
        header(m, h.BATCH_ID): header(m, h.BATCH_SIZE) for m in yard.lane("boards-us", "batch")
    }
    assert sorted(map(str, sizes.values())) == ["1", "4", "4", "4"]


async def test_what_was_cancelled_has_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "RELEASED_BYTES_MAX", 4_000)
    yard = Yard()
    for n in range(3):
        hold(yard, f"s{n}", metadata="x" * 1000)
        yard.cancellations.add(f"s{n}", Cancellation(), START)
    transactor = await run(yard, make_batcher(yard))
    for ended in (2, 3):
        await transactor.step()
        assert len(yard.results()) == ended


async def test_the_progress_of_the_hold_moves_but_not_with_each_poll() -> None:
    yard = Yard()
    hold(yard, "s0", partition=0)
    transactor = await run(yard, make_batcher(yard))
    await transactor.step()
    assert newest_progress(yard) == Progress(1, held_from=0)
    hold(yard, "s1", partition=0)
    await transactor.step()
    assert newest_progress(yard) == Progress(1, held_from=0)
    yard.clock.at += COMMIT_EVERY_S
    await transactor.step()
    assert newest_progress(yard) == Progress(2, held_from=0)


def newest_progress(yard: Yard) -> Progress:
    record = yard.cluster.records(yard.catalogue.progress, 0)[-1]
    return decode(Progress, record.value or b"").with_head(None).on_log(None, None)


async def test_a_release_without_a_restore_is_a_defect() -> None:
    yard = Yard()
    with pytest.raises((KeyError, LogError)):
        await make_batcher(yard).work(Partition(yard.catalogue.held, 0), [])
    await asyncio.sleep(0)
