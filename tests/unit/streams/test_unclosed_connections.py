"""Connections to Kafka: none stays open that nobody uses, whenever its user is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup

from shunter.client.kafka import tail
from shunter.client.submit import producer_of
from streams.engine.clock import SystemClock
from streams.engine.log import Record
from streams.kafka import announcer, broker_loss
from streams.kafka.follower import TopicFollower
from streams.kafka.log import KafkaLog
from streams.kafka.reader import reader
from streams.live.evidence_search import find_evidence
from topics import Catalogue, Settings
from topics.admin.provisioning import apply, partition_counts

pytestmark = pytest.mark.kafka
MOMENTS_MAX = 60
# A producer that is let go of may still be about to try again.
ENDED_S_MAX = 2.0


@pytest.fixture
async def settings(kafka: str, prefix: str) -> Settings:
    found = Settings(bootstrap_servers=kafka, topic_prefix=prefix, partitions=1)
    await apply(found, [])
    broker_loss.client_options(found)
    return found


class CancelledAt:
    """Work whose task is cancelled as what it waits for the ``moment``-th time has come."""

    def __init__(self, work: Coroutine[Any, Any, object], moment: int) -> None:
        self._work = work
        self._moment = moment
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, object]:
        step: Callable[[Any], Any] = self._work.send
        given: Any = None
        task = asyncio.current_task()
        while True:
            try:
                awaited = step(given)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self._moment:
                if awaited is None:
                    task.cancel()
                else:
                    # Before the task goes on: called in the order in which they were added.
                    awaited.add_done_callback(lambda _: task.cancel())
            try:
                given = yield awaited
                step = self._work.send
            except BaseException as thrown:  # noqa: BLE001 - the work's to take
                given, step = thrown, self._work.throw


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Transport]:
    """All that is opened from now on."""
    opened: list[asyncio.Transport] = []
    loops: Any = asyncio.SelectorEventLoop
    make = loops._make_socket_transport

    def kept(*args: Any, **options: Any) -> asyncio.Transport:
        opened.append(made := make(*args, **options))
        return made

    monkeypatch.setattr(loops, "_make_socket_transport", kept)
    return opened


class Results(TopicFollower):
    """A follower that keeps nothing."""

    def take(self, record: Record) -> None:
        """Pass over it."""


async def read(settings: Settings) -> None:
    async with reader(settings, asks=[Catalogue(settings).results]):
        pass


async def follow(settings: Settings) -> None:
    follower = Results(settings, Catalogue(settings).results)
    await follower.start()
    await follower.stop()


async def announce(settings: Settings) -> None:
    worker = announcer.Announcer(settings, Catalogue(settings).pool_status)
    try:
        await worker.publish(b"pool/worker", None)
    finally:
        await worker.stop()


async def fence(settings: Settings) -> None:
    writer = await KafkaLog(settings).fence(f"{settings.topic_prefix}.writer")
    await writer.close()


async def look_for_evidence(settings: Settings) -> None:
    await find_evidence(settings, SystemClock(), "request-1")


async def wait_for_results(settings: Settings) -> None:
    async with tail(settings, [Catalogue(settings).results]):
        pass


async def publish(settings: Settings) -> None:
    async with producer_of(settings):
        pass


async def administer(settings: Settings) -> None:
    await partition_counts(settings, [Catalogue(settings).results])


async def leftovers(
    others: set[asyncio.Task[Any]], transports: list[asyncio.Transport]
) -> tuple[set[asyncio.Task[Any]], list[asyncio.Transport]]:
    """Return tasks besides these, and what is open, after the time that both may take to end."""
    until = asyncio.get_running_loop().time() + ENDED_S_MAX
    while True:
        await asyncio.sleep(0.01)
        tasks = asyncio.all_tasks() - others
        still_open = [each for each in transports if not each.is_closing()]
        if not (tasks or still_open) or asyncio.get_running_loop().time() > until:
            return tasks, still_open


@pytest.mark.parametrize(
    "work",
    [
        read, follow, announce, fence, look_for_evidence, wait_for_results, publish, administer,
    ],
)  # fmt: skip
async def test_whoever_is_cancelled_leaves_nothing_open(
    settings: Settings,
    transports: list[asyncio.Transport],
    work: Callable[[Settings], Coroutine[Any, Any, None]],
) -> None:
    others = asyncio.all_tasks()
    left: dict[int, Any] = {}
    for moment in range(1, MOMENTS_MAX):
        transports.clear()
        cancelled = CancelledAt(work(settings), moment)

        async def run(cancelled: CancelledAt = cancelled) -> None:
            await cancelled

        async with asyncio.timeout(90):
            await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
        tasks, still_open = await leftovers(others, transports)
        if tasks or still_open:
            left[moment] = [task.get_coro() for task in tasks], still_open
            for task in tasks:
                task.cancel()
            for each in still_open:
                each.abort()
        if cancelled.waits < moment:
            break
    else:
        pytest.fail(f"it waits more than {MOMENTS_MAX} times")
    assert not left


async def test_what_is_opened_while_its_client_closes_is_closed(
    settings: Settings, transports: list[asyncio.Transport]
) -> None:
    async with reader(settings) as consumer:
        client = consumer._client
        node = client.get_random_node()
        opening = asyncio.create_task(client.ready(node, group=ConnectionGroup.COORDINATION))
        await asyncio.sleep(0)
    assert not await opening
    assert all(each.is_closing() for each in transports)


async def test_a_farewell_that_no_broker_takes_leaves_nothing_open(
    settings: Settings, transports: list[asyncio.Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "FAREWELL_S_MAX", 0.2)
    others = asyncio.all_tasks()
    leaving = announcer.Announcer(settings, Catalogue(settings).pool_status)
    await leaving.start()

    async def never(*_record: Any, **_options: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(leaving._producer, "send_and_wait", never)
    await leaving.stop((b"pool/worker", b"{}"))
    assert await leftovers(others, transports) == (set(), [])
