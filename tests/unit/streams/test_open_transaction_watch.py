"""A transaction that a client leaves open on a partition is told of, with the command to end it."""

import asyncio
import logging
import re
from collections.abc import Collection, Mapping

import pytest
from memory_log import MemoryLog
from metrics_cases import make_metrics, read
from stream_cases import Yard, make_router

from streams.engine.log import LogError, Outgoing, Partition
from streams.kafka.open_transactions import OpenTransaction
from streams.metrics import registry as m
from streams.metrics.open_transaction_watch import ASK_AGAIN_S, OVERDUE_S, TELL_AGAIN_S, BlockWatch

PATIENCE_S = 20.0
SERVERS = "kafka-1:9092,kafka-2:9092"
TOOL = f"kafka-transactions.sh --bootstrap-server {SERVERS}"
OPEN = OpenTransaction(7, 1)


class Case:
    """A router on the log in memory, a client that leaves a transaction open, and the watch."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.caplog = caplog
        self.yard = Yard()
        self.requests = self.yard.catalogue.requests
        self.where = Partition(self.requests, 0)
        self.log = MemoryLog(self.yard.cluster)
        self.brokers: Mapping[Partition, OpenTransaction] | Exception = {}
        self.asked: list[set[Partition]] = []
        self.watch = BlockWatch(
            lambda: [self.log],
            self.find,
            self.yard.clock,
            patience_s=PATIENCE_S,
            servers=SERVERS,
        )
        self.metrics = make_metrics(self.yard)
        self.metrics.gauges.read_from(self.watch.gauges)

    async def find(self, partitions: Collection[Partition]) -> Mapping[Partition, OpenTransaction]:
        self.asked.append(set(partitions))
        if isinstance(self.brokers, Exception):
            raise self.brokers
        return self.brokers

    async def begin(self) -> "Case":
        """Let a client publish a record, then open a transaction that another record follows."""
        await self.yard.run(make_router(self.yard), self.log)
        self.yard.publish(id="before")
        writer = await MemoryLog(self.yard.cluster, "client").fence("client")
        await writer.begin()
        await (await writer.send(Outgoing(self.requests, b"k", b"{}", partition=0)))
        self.yard.publish(id="behind")
        return self

    async def look(self, after_s: float) -> list[str]:
        """Return the warnings of a look so much later."""
        self.yard.clock.at += after_s
        self.caplog.clear()
        await self.watch.look()
        return [r.getMessage() for r in self.caplog.records if r.levelno == logging.WARNING]

    async def blocked(self, found: OpenTransaction) -> str:
        """Return the one warning of a partition that is blocked by this transaction."""
        self.brokers = {self.where: found}
        await self.look(0)
        (told,) = await self.look(PATIENCE_S)
        return told

    def told_s(self) -> dict[tuple[str, ...], float]:
        return read(self.metrics, m.BLOCKED)


@pytest.fixture
async def case(caplog: pytest.LogCaptureFixture) -> Case:
    return await Case(caplog).begin()


async def test_nothing_is_asked_before_a_transaction_is_older_than_shunters_own(
    case: Case,
) -> None:
    case.brokers = {case.where: OPEN}
    assert await case.look(0) == []
    assert await case.look(PATIENCE_S - 1) == []
    assert case.asked == []
    assert case.told_s() == {}
    (told,) = await case.look(1)
    assert case.asked == [{case.where}]
    assert told.startswith(
        f"{case.requests}[0] is blocked at offset 1, for 20 s by now, and 2 offsets may not be read"
        " yet: producer 7 has had a transaction open since offset 1. "
    )
    case.yard.clock.at += 5
    assert case.told_s() == {(case.requests,): PATIENCE_S + 5}


async def test_a_partition_that_moves_is_not_blocked(case: Case) -> None:
    """The transactions of a busy client follow each other."""
    case.brokers = {case.where: OPEN}
    for n in range(5):
        assert await case.look(PATIENCE_S - 1) == []
        case.yard.cluster.end("client", "committed")
        writer = await MemoryLog(case.yard.cluster, "client").fence("client")
        await writer.begin()
        await (await writer.send(Outgoing(case.requests, b"k", b"%d" % n, partition=0)))
    assert case.asked == []


async def test_what_was_fetched_long_ago_blocks_nothing_where_the_leader_has_none_open(
    case: Case,
) -> None:
    """A partition that is paused is not fetched."""
    for brokers in ({}, {case.where: OPEN._replace(start_offset=2)}):
        case.brokers, case.asked = brokers, []
        assert await case.look(PATIENCE_S) == []
        assert await case.look(PATIENCE_S) == []
        assert case.asked
        assert case.told_s() == {}


async def test_it_is_told_once_and_then_now_and_then(case: Case) -> None:
    await case.blocked(OPEN)
    case.asked.clear()
    warnings = 0
    for _ in range(int(TELL_AGAIN_S)):
        warnings += len(await case.look(1))
    assert warnings == 1
    assert len(case.asked) == TELL_AGAIN_S / ASK_AGAIN_S


async def test_its_end_is_told_and_another_is_told_anew(case: Case) -> None:
    await case.blocked(OPEN)
    case.yard.cluster.end("client", "aborted")
    assert await case.look(3) == []
    assert "blocked at offset 1 no longer, or is another process's; it was for 23 s" in (
        case.caplog.text
    )
    assert case.told_s() == {}
    writer = await MemoryLog(case.yard.cluster, "client").fence("client")
    await writer.begin()
    await (await writer.send(Outgoing(case.requests, b"k", b"{}", partition=0)))
    assert "since offset 4" in await case.blocked(OPEN._replace(start_offset=4))


async def test_what_a_client_can_still_end_is_told_with_what_ends_all_of_it(case: Case) -> None:
    now = case.yard.clock.at + PATIENCE_S
    told = await case.blocked(
        OPEN._replace(transactional_id="my client's", ends_at=now + 40, written_at=now - 21)
    )
    assert "since offset 1, written to 21 s ago. " in told
    assert "the brokers do in 40 s" in told
    assert told.endswith(
        f"at once: {TOOL} forceTerminateTransaction --transactionalId 'my client'\"'\"'s'"
    )


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "é", "x" * 201])
async def test_a_name_that_is_no_plain_text_stands_in_no_command(case: Case, name: str) -> None:
    told = await case.blocked(OPEN._replace(transactional_id=name))
    assert told.isprintable()
    assert told.isascii()
    assert len(told) < 1000
    assert told.endswith(
        f"at once: {TOOL} abort --topic {case.requests} --partition 0 --start-offset 1"
    )


async def test_one_that_its_coordinator_has_ended_hangs(case: Case) -> None:
    told = await case.blocked(OPEN._replace(transactional_id="client", hangs=True))
    assert "It hangs: the coordinator of 'client' has it open no more" in told
    assert told.endswith(
        f"this ends it: {TOOL} abort --topic {case.requests} --partition 0 --start-offset 1"
    )


async def test_one_that_begins_to_hang_is_told_again_at_once(case: Case) -> None:
    await case.blocked(OPEN._replace(transactional_id="client"))
    case.brokers = {case.where: OPEN._replace(transactional_id="client", hangs=True)}
    (told,) = await case.look(ASK_AGAIN_S)
    assert "It hangs" in told


async def test_one_that_no_coordinator_tells_of_hangs_once_brokers_would_have_ended_it(
    case: Case,
) -> None:
    told = await case.blocked(OPEN._replace(timeout_s_max=60.0))
    assert "Either it hangs, or the brokers end it after its timeout" in told
    assert "(60 s)" in told
    assert await case.look(60 + OVERDUE_S - PATIENCE_S) == []
    (told,) = await case.look(ASK_AGAIN_S)
    assert "It hangs: no coordinator tells of it" in told


async def test_one_is_not_said_to_hang_where_nobody_tells_how_long_one_may_last(
    case: Case,
) -> None:
    assert "(15 minutes by default)" in await case.blocked(OPEN)
    (told,) = await case.look(86_400)
    assert "It hangs" not in told


async def test_that_brokers_do_not_tell_is_told_and_no_end_of_the_watch(case: Case) -> None:
    case.brokers = LogError("no broker")
    await case.look(0)
    (told,) = await case.look(PATIENCE_S)
    assert re.search(r"\[0\]: some records may not be read yet, .*no broker", told)
    assert case.told_s() == {(case.requests,): PATIENCE_S}
    assert await case.look(1) == []
    case.brokers = {case.where: OPEN}
    assert len(await case.look(ASK_AGAIN_S)) == 1


async def test_brokers_that_do_not_answer_are_waited_for_so_long(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: Collection[Partition]) -> Mapping[Partition, OpenTransaction]:
        await asyncio.Event().wait()
        raise AssertionError("never")

    monkeypatch.setattr("streams.metrics.open_transaction_watch.ASK_S_MAX", 0.01)
    monkeypatch.setattr(case.watch, "_find", hang)
    await case.look(0)
    async with asyncio.timeout(90):
        (told,) = await case.look(PATIENCE_S)
    assert "TimeoutError" in told
