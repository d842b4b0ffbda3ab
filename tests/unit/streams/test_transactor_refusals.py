"""Rule 4 of the transactor: a refused record is found, replaced, and harms no other."""

import pytest
from copy_stage import P0, Copier, assert_once, fill, make_cluster, take, values
from memory_log import MemoryCluster
from stream_cases import drain, soon

from streams.engine.committer import TRIED_AT_ONCE
from streams.engine.log import LogError, Outgoing, Record
from streams.engine.stage import Effect


@pytest.fixture
def cluster() -> MemoryCluster:
    return make_cluster()


def is_bad(record: Outgoing) -> bool:
    return record.topic != "dead" and (record.value or b"").startswith(b"bad")


def fill_with_bad(cluster: MemoryCluster, bad: int = 1) -> None:
    for n in range(6):
        name = f"bad{n}" if n in range(2, 2 + bad) else f"good{n}"
        cluster.publish(Outgoing("in", name.encode(), name.encode(), partition=0))


@pytest.mark.parametrize("hook", ["refuse", "oversized"])
@pytest.mark.parametrize("bad", [1, 2])
async def test_a_refused_record_is_dead_lettered_and_the_others_go_out_once(
    cluster: MemoryCluster, hook: str, bad: int
) -> None:
    fill_with_bad(cluster, bad)
    setattr(cluster, hook, is_bad)
    stage = Copier()
    transactor = await take(cluster, stage)
    await drain(transactor)
    await transactor.stop()
    names = [f"bad{n}" if n in range(2, 2 + bad) else f"good{n}" for n in range(6)]
    culprits = [name for name in names if name.startswith("bad")]
    assert values(cluster, "dead") == culprits
    assert sorted({name.decode() for name, _ in stage.refusals}) == culprits
    assert_once(cluster, [name for name in names if name.startswith("good")])
    assert cluster.offsets["copiers", P0] == 6
    assert cluster.open_transactions() == []


async def test_of_many_that_fell_with_a_few_each_is_looked_for_without_a_producer_of_its_own(
    cluster: MemoryCluster,
) -> None:
    names = [f"{'bad' if n in (30, 31, 99) else 'good'}{n}" for n in range(100)]
    for name in names:
        cluster.publish(Outgoing("in", name.encode(), name.encode(), partition=0))
    cluster.refuse = lambda record: record.topic == "out" and is_bad(record)
    transactor = await take(cluster, Copier())
    await transactor.take_over()
    before = cluster.epoch("copiers-in-0")
    await drain(transactor)
    assert values(cluster, "dead") == ["bad30", "bad31", "bad99"]
    assert_once(cluster, [name for name in names if name.startswith("good")])
    # One for what was refused together; then one for each that is bad and each twenty that aren't.
    assert cluster.epoch("copiers-in-0") - before <= 1 + 3 + 100 / TRIED_AT_ONCE


async def test_of_an_effect_with_several_records_the_refused_one_is_named(
    cluster: MemoryCluster,
) -> None:
    class Tripler(Copier):
        def copy(self, record: Record) -> Effect:
            values = [b"good-a", b"bad", b"good-b"]
            copies = [Outgoing("out", record.key, value, partition=0) for value in values]
            return Effect(record, copies)

    fill(cluster, 1)
    cluster.refuse = is_bad
    stage = Tripler()
    await drain(await take(cluster, stage))
    assert stage.refusals == [(b"bad", "out")]
    assert values(cluster, "dead") == ["r0"]


async def test_a_refused_dead_letter_ends_the_process(cluster: MemoryCluster) -> None:
    fill_with_bad(cluster)
    cluster.refuse = lambda record: (record.value or b"").startswith(b"bad")
    with pytest.raises(LogError, match="dead letter"):
        await drain(await take(cluster, Copier()))
    assert values(cluster, "out") == []


async def test_refused_progress_ends_the_process(cluster: MemoryCluster) -> None:
    fill(cluster, 2)
    cluster.refuse = lambda record: record.topic == "progress"
    with pytest.raises(LogError, match="progress"):
        await drain(await take(cluster, Copier()))
    assert values(cluster, "out") == []


async def test_records_refused_only_together_end_the_process_instead_of_hanging_it(
    cluster: MemoryCluster,
) -> None:
    fill(cluster, 6, partitions=1)
    transactor = await take(cluster, Copier())
    together: list[int] = []

    def refuse_second(record: Outgoing) -> bool:
        if record.topic != "out":
            return False
        together.append(1)
        # The whole batch is asked for; a record alone is the first one asked for.
        return len(together) == 6

    cluster.refuse = refuse_second
    with pytest.raises(LogError, match=r"max\.message\.bytes"):
        await soon(transactor.step(), "an end of the search")
    assert values(cluster, "out") == []
