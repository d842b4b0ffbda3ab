"""Router, batcher, worker and canceller on both logs, from one definition."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from hold_cases import held_request, make_batcher
from stream_cases import START, Yard, header, keys, make_transactor, request
from two_logs import PARTITIONS, SMALL_BYTES, KafkaGround, MemoryGround, make_ground
from worker_cases import ScriptedBackend, make_worker, placed

from streams.cancellation.stage import Canceller
from streams.engine.log import Log, Outgoing, Partition
from streams.engine.stage import Stage
from streams.engine.transactor import Transactor
from streams.router.stage import Router
from topics import Cancellation, Catalogue, Progress, Settings, Usage, decode, encode, progress_key
from topics.records import headers as h

BOTH = ["memory", pytest.param("kafka", marks=pytest.mark.kafka)]


class GroundYard(Yard):
    """An installation on either log. What the stages have written is known after ``settle``."""

    def __init__(self, ground: MemoryGround | KafkaGround) -> None:
        super().__init__()
        self.ground = ground
        self.settings = Settings(instance="a", topic_prefix=ground.prefix, partitions=PARTITIONS)
        self.catalogue = Catalogue(self.settings)
        self.cluster: Any = ground
        self.small = self.catalogue.pool_lane("premium-us", "direct")

    async def open(self) -> None:
        topics = {t.name: t.partitions for t in self.catalogue.topics(self.options.by_pool)}
        await self.ground.create(topics, small=[self.small], compacted=[self.catalogue.held])

    async def own(self, stage: Stage) -> tuple[Transactor, Log]:
        """Return a new process that has all partitions of a stage, and its log."""
        log = self.ground.log()
        transactor = make_transactor(log, stage, self.catalogue.progress)  # type: ignore[arg-type]
        await self.ground.own(transactor, PARTITIONS * len(stage.topics))
        return transactor, log

    async def ask(self, number: int = 0, **fields: Any) -> None:
        """Publish a request."""
        value = orjson.dumps(request(**fields))
        key = str(fields["id"]).encode()
        await self.ground.publish(Outgoing(self.catalogue.requests, key, value, [], number))

    async def settle(self, transactor: Transactor, check: Callable[[], object]) -> None:
        """Step until the check holds of what is visible."""
        async with asyncio.timeout(60):
            while not check():
                await transactor.step()
                await self.ground.look()

    async def told(
        self, transactor: Transactor, log: Log, partition: Partition, offset: int
    ) -> None:
        """Step until the group's offset is this one."""
        async with asyncio.timeout(60):
            while await log.committed(partition) != offset:
                await transactor.step()

    def progress(self, group: str, topic: str, number: int) -> Progress | None:
        """Return the newest progress on a partition."""
        key = progress_key(group, topic, number)
        found = [
            r.value for r in self.cluster.records(self.catalogue.progress, number) if r.key == key
        ]
        return decode(Progress, found[-1] or b"").on_log(None, None) if found else None

    def router(self) -> Router:
        return Router(
            self.situation(),
            self.evidence_writer(),
            self.clock,
            self.telemetry,
            request_bytes_max=self.settings.request_bytes_max,
            duplicate_window_records=100,
        )

    def served(self) -> list[str]:
        return sorted(keys(self.lane("premium-eu", "direct")))


@pytest.fixture(params=BOTH)
async def yard(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[GroundYard]:
    kafka = request.getfixturevalue("kafka") if request.param == "kafka" else None
    ground = make_ground(request.param, kafka, prefix)
    found = GroundYard(ground)
    await found.open()
    yield found
    await ground.close()


async def test_a_request_is_placed_with_its_evidence_and_progress_moves_with_it(
    yard: GroundYard,
) -> None:
    requests = Partition(yard.catalogue.requests, 1)
    await yard.ask(1, id="a")
    router = yard.router()
    transactor, log = await yard.own(router)
    await yard.settle(transactor, lambda: yard.served() and yard.evidence("placed"))
    (evidence,) = yard.evidence("placed")
    assert (evidence.request_id, evidence.source.partition, evidence.source.offset) == ("a", 1, 0)
    assert yard.lane("premium-eu", "direct")[0].partition.number == 1
    await yard.settle(transactor, lambda: yard.progress(router.group, *requests))
    assert yard.progress(router.group, *requests).with_head(None) == Progress(1)
    await yard.told(transactor, log, requests, 1)


async def test_bad_and_refused_requests_become_dead_letters_and_their_neighbours_are_served(
    yard: GroundYard,
) -> None:
    await yard.ask(id="before")
    await yard.ground.publish(Outgoing(yard.catalogue.requests, b"bad", b'{"id": 1, "', [], 0))
    huge = {"constraints": {"pools": ["premium-us"]}, "metadata": "x" * SMALL_BYTES}
    await yard.ask(id="huge", **huge)
    await yard.ask(id="after")
    transactor, _ = await yard.own(yard.router())
    await yard.settle(
        transactor,
        lambda: len(yard.served()) == len(yard.dead_letters()) == 2 and yard.results(),
    )
    assert yard.served() == ["after", "before"]
    reasons = {letter.key: header(letter, h.REASON) for letter in yard.dead_letters()}
    assert reasons == {b"bad": "not_json", b"huge": "refused"}
    assert yard.results()["huge"].status == "failed"
    assert not yard.lane("premium-us", "direct")


async def test_a_successor_goes_on_knows_the_ids_and_leaves_its_predecessor_powerless(
    yard: GroundYard,
) -> None:
    await yard.ask(id="a")
    old, log = await yard.own(yard.router())
    await yard.settle(old, yard.served)
    await yard.ground.kill(log)
    # It dies within a transaction, which nobody may ever see.
    writer = old._writers[Partition(yard.catalogue.requests, 0)]
    await writer.begin()
    await (await writer.send(Outgoing(yard.catalogue.results, b"a", b"{}", [], 0)))
    for name in ("a", "b"):
        await yard.ask(id=name)

    new, log = await yard.own(yard.router())
    with pytest.raises(yard.ground.fenced):
        await writer.commit()
    await yard.settle(new, lambda: len(yard.served()) == 2 and yard.evidence("duplicate"))
    assert yard.served() == ["a", "b"]
    (duplicate,) = yard.evidence("duplicate")
    assert (duplicate.request_id, duplicate.source.offset) == ("a", 1)
    assert not yard.results()
    await yard.told(new, log, Partition(yard.catalogue.requests, 0), 3)


async def test_progress_that_is_further_than_the_groups_offset_counts(yard: GroundYard) -> None:
    """As where a broker's death has lost the marker on the offset."""
    for name in ("a", "b", "c"):
        await yard.ask(id=name)
    router = yard.router()
    key = progress_key(router.group, yard.catalogue.requests, 0)
    told = Outgoing(yard.catalogue.progress, key, encode(Progress(2)), [], 0)
    await yard.ground.publish(told)
    transactor, log = await yard.own(router)
    await yard.settle(transactor, yard.served)
    assert yard.served() == ["c"]
    await yard.told(transactor, log, Partition(yard.catalogue.requests, 0), 3)


async def test_a_compacted_hold_is_found_by_a_successor_and_released_once(
    yard: GroundYard,
) -> None:
    gone = held_request(yard, "gone")
    for held in (gone, *(held_request(yard, f"s{n}") for n in range(3))):
        await yard.ground.publish(held)
    await yard.ground.publish(Outgoing(gone.topic, gone.key, None, [], gone.partition))
    before = make_batcher(yard)
    _, log = await yard.own(before)
    assert sum(before.sizes().values()) == 3
    await yard.ground.kill(log)
    await yard.ground.look()
    await yard.ground.compact(Partition(gone.topic, gone.partition or 0))

    after = make_batcher(yard)
    transactor, _ = await yard.own(after)
    assert after.sizes() == before.sizes()
    yard.clock.at = START + 45
    await yard.settle(transactor, lambda: len(yard.lane("boards-us", "batch")) == 3)
    await yard.settle(transactor, lambda: not yard.held())
    assert sorted(keys(yard.lane("boards-us", "batch"))) == ["s0", "s1", "s2"]
    assert sorted(e.request_id for e in yard.evidence("released")) == ["s0", "s1", "s2"]


async def test_a_held_request_is_cancelled_with_result_tombstone_and_evidence(
    yard: GroundYard,
) -> None:
    await yard.ground.publish(held_request(yard, "s0"))
    transactor, _ = await yard.own(make_batcher(yard))
    yard.cancellations.add("s0", Cancellation("enough"), START)
    await yard.ground.look()
    assert keys(yard.held()) == ["s0"]
    await yard.settle(transactor, lambda: not yard.held() and yard.results())
    assert yard.results()["s0"].status == "cancelled"
    await yard.settle(transactor, lambda: yard.evidence("cancelled"))


async def test_what_finished_out_of_order_is_not_run_again_by_a_successor(
    yard: GroundYard,
) -> None:
    for name in ("c0", "c1", "c2"):
        await yard.ground.publish(placed(yard, name))
    backend = ScriptedBackend()
    worker = make_worker(yard, backend)
    old, log = await yard.own(worker)
    await yard.settle(old, lambda: len(backend.running) == 3)
    backend.finish("c1")
    await yard.settle(old, yard.results)
    lane = Partition(yard.catalogue.pool_lane("premium-eu", "direct"), 0)
    await yard.settle(old, lambda: yard.progress(worker.group, *lane))
    assert yard.progress(worker.group, *lane).with_head(None) == Progress(0, (1,))
    await yard.ground.kill(log)

    second = ScriptedBackend()
    new, log = await yard.own(make_worker(yard, second))
    # The zombie's answer comes too late.
    backend.finish("c0")
    await asyncio.sleep(0)
    with pytest.raises(yard.ground.fenced):
        await old._run(lane, [])
    await yard.settle(new, lambda: len(second.running) == 2)
    assert sorted(second.began) == ["c0", "c2"]
    for name in ("c2", "c0"):
        second.finish(name, usage=Usage(1, 1))
    await yard.settle(new, lambda: len(yard.results()) == 3)
    outputs = {n: r.usage.output_tokens for n, r in yard.results().items() if r.usage}
    assert outputs == {"c0": 1, "c1": 10, "c2": 1}
    await yard.told(new, log, lane, 3)


async def test_a_running_request_is_cancelled_and_ends_once(yard: GroundYard) -> None:
    for name in ("c0", "c1"):
        await yard.ground.publish(placed(yard, name))
    backend = ScriptedBackend()
    transactor, _ = await yard.own(make_worker(yard, backend))
    await yard.settle(transactor, lambda: len(backend.running) == 2)
    yard.cancellations.add("c0", Cancellation(None), START)
    backend.finish("c1")
    await yard.settle(transactor, lambda: len(yard.results()) == 2)
    assert backend.cancelled == ["c0"]
    assert {n: r.status for n, r in yard.results().items()} == {
        "c0": "cancelled",
        "c1": "completed",
    }


async def test_a_cancellation_is_evidenced_once_whoever_reads_it(yard: GroundYard) -> None:
    async def cancel(name: str) -> None:
        await yard.ground.publish(
            Outgoing(yard.catalogue.cancellations, name.encode(), b'{"reason": "late"}', [], 0)
        )

    await cancel("a")
    old, log = await yard.own(Canceller(yard.evidence_writer(), yard.clock))
    await yard.settle(old, lambda: yard.evidence("cancel_requested"))
    await yard.ground.kill(log)
    await cancel("b")
    new, _ = await yard.own(Canceller(yard.evidence_writer(), yard.clock))
    await yard.settle(new, lambda: len(yard.evidence("cancel_requested")) == 2)
    found = [(e.request_id, e.message) for e in yard.evidence("cancel_requested")]
    # Why is the client's text, and in the result alone.
    assert sorted(found) == [("a", None), ("b", None)]
