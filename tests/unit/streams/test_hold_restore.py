"""The hold is a log: whoever takes it over knows exactly what is held."""

import random

import pytest
from hold_cases import Noting, held_request, hold, look, make_batcher, run
from memory_log import Crash, CrashPoint, MemoryLog, ProcessKilledError
from stream_cases import POLICY, START, Yard, drain, header, keys, make_policy
from tiers import seeds

from streams.engine.log import LogError, Outgoing
from topics.records import headers as h

DIFFERENT_BUCKETS = POLICY.replace("[512, 2048]", "[4, 64, 512]")


async def test_a_new_owner_knows_what_is_held_and_no_more() -> None:
    yard = Yard()
    for n in range(6):
        hold(yard, f"s{n}")
    hold(yard, "eu", constraints={"data_class": "regulated"})
    before = await look(yard)
    after = make_batcher(yard)
    await run(yard, after)
    assert after.sizes() == before.sizes()
    assert sorted(after.sizes().values()) == [1, 2]


async def test_what_is_restored_after_compaction_is_the_same() -> None:
    yard = Yard()
    for n in range(6):
        hold(yard, f"s{n}")
    before = await look(yard)
    yard.cluster.compact(yard.catalogue.held)
    after = make_batcher(yard)
    await run(yard, after)
    assert after.sizes() == before.sizes()
    yard.clock.at = START + 45
    await look(yard)
    assert sorted(keys(yard.lane("boards-us", "batch"))) == [f"s{n}" for n in range(6)]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_new_owner_takes_what_is_held_for_a_sign_of_more(count: int) -> None:
    yard = Yard(policy=POLICY.replace("prior_rate_per_s: 0.5", "prior_rate_per_s: 0.0001"))
    for n in range(count):
        hold(yard, f"s{n}", held_at=START + n)
    yard.clock.at = START + count
    await look(yard)
    # One alone goes at once, where its pool is idle; three are expected to become four.
    assert len(yard.lane("boards-us", "batch")) == (1 if count == 1 else 0)


async def test_a_new_owner_reads_from_where_anything_is_held() -> None:
    yard = Yard()
    transactor = await run(yard, make_batcher(yard))
    for n in range(4):
        hold(yard, f"s{n}")
    await drain(transactor)
    waiting = hold(yard, "s4")
    yard.clock.at += 11
    await drain(transactor)
    assert len(yard.lane("boards-us", "batch")) == 4
    successor, log = make_batcher(yard), Noting(yard)
    await run(yard, successor, log)
    assert log.starts[waiting.partition.number] == waiting.offset
    assert sum(successor.sizes().values()) == 1


@pytest.mark.parametrize("seed", seeds(6, 30))
async def test_what_is_restored_is_what_a_reading_from_the_beginning_finds(seed: int) -> None:
    rng = random.Random(seed)
    yard = Yard()
    transactor = await run(yard, make_batcher(yard))
    for _ in range(60):
        for _ in range(rng.randint(0, 3)):
            number = rng.randrange(30)
            hold(yard, f"s{number}", held_at=yard.clock.at, partition=number % 2)
        yard.clock.at += rng.choice([0, 0.5, 2, 12, 50])
        await transactor.step()
        if rng.random() < 0.1:
            yard.cluster.compact(yard.catalogue.held)
        if rng.random() < 0.2:
            successor = make_batcher(yard)
            transactor = await run(yard, successor)
            fresh, log = make_batcher(yard), MemoryLog(yard.cluster)
            for partition in successor._partitions:
                await fresh.restore(partition, None, log)
            assert successor.sizes() == fresh.sizes()


async def test_a_hold_with_an_open_transaction_at_its_end_is_read_to_the_end() -> None:
    yard = Yard()
    hold(yard, "s0")
    router = await MemoryLog(yard.cluster, "router").fence("a router")
    await router.begin()
    await (await router.send(held_request(yard, "s1")))

    async def commit_meanwhile(_seconds: float) -> None:
        if yard.cluster.open_transactions() == ["a router"]:
            await router.commit()

    yard.cluster.sleep = commit_meanwhile
    batcher = make_batcher(yard)
    await run(yard, batcher)
    assert sum(batcher.sizes().values()) == 2


@pytest.mark.parametrize("point", ["begin", "send", "append", "commit", "committed"])
@pytest.mark.parametrize("payload_bytes_max", [0, 1_000_000])
async def test_each_is_released_once_wherever_the_batcher_dies(
    point: CrashPoint, payload_bytes_max: int
) -> None:
    nth = 0
    while True:
        nth += 3
        yard = Yard()
        crash = Crash(point, nth)
        names = [f"s{n}" for n in range(9)] + ["eu"]
        for name in names:
            eu = {"data_class": "regulated"} if name == "eu" else {}
            hold(yard, name, constraints=eu)
        dying = make_batcher(yard, held_payload_bytes_max=payload_bytes_max)
        transactor = await run(yard, dying, MemoryLog(yard.cluster, "dying"))
        yard.cluster.crash = crash
        try:
            for second in (0, 45, 46):
                yard.clock.at = START + second
                await transactor.step()
        except ProcessKilledError:
            assert crash.has_struck
        successor = make_batcher(yard, held_payload_bytes_max=payload_bytes_max)
        transactor = await run(yard, successor, MemoryLog(yard.cluster, "successor"))
        assert sum(successor.sizes().values()) == len(yard.held())
        yard.clock.at = START + 50
        await drain(transactor)
        await transactor.step()
        released = yard.lane("boards-us", "batch") + yard.lane("premium-eu", "batch")
        assert sorted(keys(released)) == sorted(names), f"crash at {point} {nth}"
        assert sorted(e.request_id for e in yard.evidence("released")) == sorted(names)
        assert not yard.held()
        if not crash.has_struck:
            break
    assert nth > 3


async def test_whatever_the_policy_was_when_it_was_held_a_batch_has_a_name_of_its_own() -> None:
    # Group and partition were chosen by other length buckets: the group no longer tells where
    # a request is held.
    yard = Yard()
    first = [hold(yard, f"a{n}", partition=0) for n in range(4)]
    second = [hold(yard, f"b{n}", partition=1) for n in range(4)]
    assert first[0].offset == second[0].offset
    yard.policy = make_policy(DIFFERENT_BUCKETS)
    lane = yard.catalogue.pool_lane("boards-us", "batch")
    yard.cluster.refuse = lambda r: r.topic == lane and r.key in (b"a2", b"b2")
    await look(yard)
    members = yard.lane("boards-us", "batch")
    by_batch: dict[str | None, list[str]] = {}
    for member in members:
        by_batch.setdefault(header(member, h.BATCH_ID), []).extend(keys([member]))
    assert sorted(sorted(names) for names in by_batch.values()) == [
        ["a0", "a1", "a3"],
        ["b0", "b1", "b3"],
    ]
    assert sorted(yard.results()) == ["a2", "b2"]
    assert not yard.held()


async def test_payloads_beyond_the_cap_are_read_again_at_the_release() -> None:
    yard = Yard()
    held = {record.key: record for record in (hold(yard, f"s{n}") for n in range(4))}
    batcher = await look(yard, held_payload_bytes_max=0)
    members = yard.lane("boards-us", "batch")
    assert len(members) == 4
    for member in members:
        assert member.value == held[member.key].value
    assert batcher.room.bytes_used == 0


async def test_a_held_record_that_the_log_has_lost_ends_the_process() -> None:
    yard = Yard()
    hold(yard, "s0", partition=0)
    hold(yard, "s1", partition=0)
    batcher = make_batcher(yard, held_payload_bytes_max=0)
    transactor = await run(yard, batcher)
    yard.cluster.trim(yard.cluster.records(yard.catalogue.held)[0].partition, 1)
    yard.clock.at = START + 45
    with pytest.raises(LogError, match="'s0'"):
        await transactor.step()
    assert not yard.lane("boards-us", "batch")


UNREADABLE: dict[str, list[tuple[str, bytes]]] = {
    "no profile": [(h.HELD_AT, b"1")],
    "a broken profile": [(h.PROFILE, b"{}"), (h.HELD_AT, b"1")],
    "no time": [],
    "a broken time": [(h.HELD_AT, b"noon")],
    "no finite time": [(h.HELD_AT, b"nan")],
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_a_held_record_that_nobody_can_read_is_dead_lettered_once(kind: str) -> None:
    yard = Yard()
    record = hold(yard, "bad", partition=0)
    good = [header for header in record.headers if header[0] == h.PROFILE]
    headers = UNREADABLE[kind] if "profile" in kind else [*good, *UNREADABLE[kind]]
    bad = Outgoing(yard.catalogue.held, b"bad", record.value, headers, 0)
    yard.cluster.publish(bad)
    hold(yard, "good", partition=0)
    yard.cluster.compact(yard.catalogue.held)

    # Full with the good one, it does not read the tombstone that it writes.
    transactor = await run(yard, make_batcher(yard, held_records_max=1))
    for _ in range(3):
        await transactor.step()
    (letter,) = yard.dead_letters()
    assert (letter.key, letter.value) == (b"bad", record.value)
    assert header(letter, h.REASON) in ("missing_header", "bad_header")
    assert keys(yard.held()) == ["good"]
    tombstone = yard.cluster.records(yard.catalogue.held)[-1]
    assert tombstone.value is None
    assert yard.cluster.transaction_of(tombstone) is yard.cluster.transaction_of(letter)

    yard.clock.at = START + 45
    await look(yard)
    assert len(yard.dead_letters()) == 1
    assert keys(yard.lane("boards-us", "batch")) == ["good"]


async def test_an_unreadable_record_found_in_the_restore_is_not_forgotten() -> None:
    yard = Yard()
    yard.cluster.publish(Outgoing(yard.catalogue.held, b"bad", b"{}", [], 2))
    yard.cluster.crash = Crash("commit")
    with pytest.raises(ProcessKilledError):
        await drain(await run(yard, make_batcher(yard), MemoryLog(yard.cluster, "dying")))
    assert not yard.dead_letters()
    await drain(await run(yard, make_batcher(yard), MemoryLog(yard.cluster, "next")))
    assert keys(yard.dead_letters()) == ["bad"]


async def test_a_partition_given_up_and_taken_back_is_known_again() -> None:
    yard = Yard()
    hold(yard, "s0", partition=0)
    hold(yard, "s1", partition=1)
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    home = yard.cluster.records(yard.catalogue.held, 0)[0].partition
    room = batcher.room.bytes_used
    await yard.cluster.assign(batcher.group, {"a": []})
    assert batcher.sizes() == {}
    assert batcher.room.bytes_used == 0
    await yard.cluster.assign(batcher.group, {"a": [home]})
    await transactor.take_over()
    assert sum(batcher.sizes().values()) == 1
    assert 0 < batcher.room.bytes_used < room
