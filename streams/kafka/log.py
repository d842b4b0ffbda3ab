"""The log on a real Kafka, through aiokafka."""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaError,
    OffsetOutOfRangeError,
)

from streams.engine.continuity import QuietPartitions, check_continuity, newest_epoch
from streams.engine.log import LogError, Membership, Partition, Record, StillOpenError
from streams.kafka import group_position, offset_requests
from streams.kafka.broker_time import Stamps
from streams.kafka.instance_name import static_name
from streams.kafka.leader_agreement import ask_leaders
from streams.kafka.membership import MembershipListener, assignors
from streams.kafka.reader import (
    PASSED_BY_SEEKING,
    REBALANCE_S,
    buffered,
    close_consumer,
    consumer_options,
    read_some,
    reader,
    unstable,
)
from streams.kafka.rebalance_patch import NameLostError, is_counted, join_once, say_farewell
from streams.kafka.record_batches import records_of, seek_back
from streams.kafka.refused_rights import REFUSED_RIGHTS
from streams.kafka.transaction_recovery import (
    Producer,
    abort_rest,
    complete_commit,
)
from streams.kafka.writer import (
    REFUSALS,
    KafkaWriter,
    let_go,
    start_writing,
    transactional_producer,
)
from topics import Catalogue, Progress, Settings

logger = logging.getLogger(__name__)

READ_FETCH_BYTES = 4 * 1024 * 1024
FETCH_MS = 5000
FETCH_TRIES = 4
# As long as the search for the coordinator may take.
FENCE_S_MAX = 30.0
# aiokafka takes a member that has not polled for this long out of its group, until it polls again.
# With its default of 5 minutes, a standby, which had nothing to poll, was out for good; one with a
# full hold, or a long restore, lost its partitions. Everything that a step waits for has limits of
# its own (`Transactor._in_time`, FENCE_S_MAX, `_read_to`, REBALANCE_S), and a frozen process sends
# no heartbeat.
IDLE_MS_MAX = math.inf
# If a log has lost the records at a position, nothing is read from elsewhere instead.
NO_RESET = {"auto_offset_reset": "none"}
# A broker's default interval of the search for transactions beyond their timeout.
EXPIRY_CHECK_S = 10.0


class KafkaLog:
    """One consumer-group member and its writers."""

    refusals: tuple[type[Exception], ...] = REFUSALS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._has_started = False
        self._positions: dict[Partition, int] = {}
        self._epochs: dict[Partition, int | None] = {}
        self._group = ""
        self._quiet = QuietPartitions(self)
        self._stamps = Stamps(self._settings)

    def is_passing(self, error: Exception) -> bool:
        """Return whether a retry may succeed after this error.

        Missing rights, and a name that another has, are permanent.
        """
        if isinstance(error, (*REFUSED_RIGHTS, NameLostError)):
            return False
        return isinstance(error, KafkaError | OSError | StillOpenError)

    @property
    def _member(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise LogError("not a member of a group: call join() first")
        return self._consumer

    async def join(self, group: str, topics: Sequence[str], membership: Membership) -> None:
        """Become a member of the group, a static one: a quick restart moves no partition."""
        join_once()
        self._group = group
        self._consumer = AIOKafkaConsumer(
            **consumer_options(self._settings) | NO_RESET,
            group_id=group,
            group_instance_id=static_name(group, self._settings.instance),
            partition_assignment_strategy=assignors(self._settings.partitions),
            session_timeout_ms=self._settings.session_timeout_ms,
            heartbeat_interval_ms=min(1000, self._settings.session_timeout_ms // 3),
            rebalance_timeout_ms=30_000,
            max_poll_interval_ms=IDLE_MS_MAX,
        )
        self._consumer.subscribe(topics, listener=MembershipListener(membership, self._consumer))
        await self._consumer.start()
        self._has_started = True

    async def is_member(self) -> bool:
        """Ask the group's coordinator, by a heartbeat."""
        return await is_counted(self._member)

    async def leave(self) -> None:
        """Close the reader. A static member stays in the group until its session ends."""
        if self._consumer is not None:
            consumer, self._consumer, self._has_started = self._consumer, None, False
            await say_farewell(consumer)
            await close_consumer(consumer)

    async def poll(
        self,
        timeout_s: float,
        records_max: int,
        paused: Collection[Partition],
        *,
        of_each: bool = False,
    ) -> Mapping[Partition, Sequence[Record]]:
        """Return new committed records of our partitions, except paused ones."""
        consumer = self._member
        held_back = {TopicPartition(*p) for p in paused}
        resumed = consumer.paused() - held_back
        consumer.resume(*resumed)
        consumer.pause(*(held_back & consumer.assignment()))
        # A poll of None names all partitions, paused ones with records in the buffer included.
        wanted = consumer.assignment() - held_back
        if not wanted:
            # As `getmany` does first: a member that only waits would never learn that the group
            # refuses it.
            consumer._coordinator.check_errors()  # noqa: SLF001
            await asyncio.sleep(timeout_s)
            return {}
        try:
            # Once a rebalance has begun the client waits for its end, whatever the timeout; and the
            # rebalance waits for this caller to give up the partitions.
            async with asyncio.timeout(timeout_s + REBALANCE_S):
                polled = await consumer.getmany(
                    *wanted, timeout_ms=int(timeout_s * 1000), max_records=records_max
                )
            if polled and of_each:
                polled |= await buffered(consumer, wanted - polled.keys(), records_max)
        except TimeoutError:
            return {}
        except PASSED_BY_SEEKING:
            seek_back(consumer, self._positions)
            return {}
        except OffsetOutOfRangeError as error:
            await self._find_again([Partition(*p) for p in error.args[0]])
            seek_back(consumer, self._positions)
            return {}
        self._stamps.look(polled)
        records = {Partition(*p): records_of(Partition(*p), rs) for p, rs in polled.items() if rs}
        epochs = await asyncio.gather(*(self._newest_epoch(*each) for each in records.items()))
        self._epochs |= dict(zip(records, epochs, strict=True))
        self._positions |= {p: rs[-1].offset + 1 for p, rs in records.items()}
        reached = {p: at for each in wanted if (at := self._positions.get(p := Partition(*each)))}
        await self._quiet.look(self._group, records, reached, self._epochs)
        return records

    async def _newest_epoch(self, partition: Partition, found: Sequence[Record]) -> int | None:
        known, position = self._epochs.get(partition), self._positions.get(partition, 0)
        return await newest_epoch(self, self._group, found, position, known)

    async def _find_again(self, partitions: Collection[Partition]) -> None:
        """Continue at the log's first offset if retention has overtaken us.

        Raises:
            BrokenLogError: it ends before the position.
        """
        for partition in partitions:
            position = self._positions.get(partition, 0)
            first, _ = (await self.bounds([partition]))[partition]
            if position < first:
                logger.warning(
                    "%s begins at %d: what stood from %d on was deleted before it was read",
                    *(partition, first, position),
                )
                self._positions[partition] = first
            else:
                await check_continuity(self, self._group, partition, Progress(position))

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, asked of the broker (rule 2)."""
        offset: int | None = await self._member.committed(TopicPartition(*partition))
        return offset

    async def commit_offsets(self, offsets: Mapping[Partition, int]) -> None:
        """Set the group's offsets for tools that show lag.

        Raises:
            LogError: not now.
        """
        await group_position.commit_offsets(self._member, offsets)

    async def lag(self) -> Mapping[Partition, int]:
        """Return how many offsets below the last stable one each of our partitions is behind."""
        if self._consumer is None or not self._has_started:
            # A consumer that is still connecting can't be asked: others sample while it does.
            return {}
        return await group_position.lags(self._consumer)

    def unstable(self) -> Mapping[Partition, tuple[int, int]]:
        """Return last stable offset and end where they differ, according to the last fetch."""
        return {} if self._consumer is None else unstable(self._consumer)

    def seek(self, partition: Partition, offset: int, leader_epoch: int | None = None) -> None:
        """Set the offset at which the next poll of the partition begins."""
        self._positions[partition] = offset
        self._epochs[partition] = leader_epoch
        self._member.seek(TopicPartition(*partition), offset)

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        """Return first offset and high watermark.

        Asked uncommitted: to a committed reader the end is the oldest open transaction, perhaps
        another stage's, and records behind it would be missed.
        """
        wanted = [TopicPartition(*p) for p in partitions]
        topics = {p.topic for p in partitions}
        async with self._reader([], topics, isolation_level="read_uncommitted") as probe:

            async def ask() -> dict[Partition, tuple[int, int]]:
                first = await probe.beginning_offsets(wanted)
                end = await probe.end_offsets(wanted)
                return {Partition(*p): (first[p], end[p]) for p in wanted}

            return await ask_leaders(probe._client, wanted, ask)  # noqa: SLF001 - whom it asks

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic: a new one if it was deleted and made again."""
        async with self._asked(topics) as client:
            return await offset_requests.passing(partial(offset_requests.topic_ids, client, topics))

    async def epoch_end(self, partition: Partition, leader_epoch: int) -> int | None:
        """Return where the records up to a leader epoch end, None if the log has none."""
        where = TopicPartition(*partition)
        async with self._asked([partition.topic]) as client:
            return await offset_requests.passing(
                lambda: offset_requests.epoch_end(client, where, leader_epoch)
            )

    @contextlib.asynccontextmanager
    async def _asked(self, topics: Collection[str] = ()) -> AsyncIterator[AIOKafkaClient]:
        """Provide a client that knows these topics, for requests that aiokafka lacks."""
        if self._consumer is not None:
            yield self._consumer._client  # noqa: SLF001 - see above
            return
        async with self._reader([], topics) as probe:
            yield probe._client  # noqa: SLF001 - likewise

    async def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield the committed records from each start to its end, or to the current end.

        Raises:
            StillOpenError: one kept the end out of reach until after its timeout.
        """
        if ends is None:
            ends = {p: end for p, (_, end) in (await self.bounds(starts)).items()}
        wanted = {p: end for p, end in ends.items() if end > starts[p]}
        if not wanted:
            return
        async with self._reader(wanted) as reader:
            for partition in wanted:
                reader.seek(TopicPartition(*partition), starts[partition])
            async for records in self._read_to(reader, dict(starts), wanted):
                yield records

    def _reader(
        self, partitions: Collection[Partition], asks: Collection[str] = (), **options: Any
    ) -> AbstractAsyncContextManager[AIOKafkaConsumer]:
        options["max_partition_fetch_bytes"] = READ_FETCH_BYTES
        return reader(self._settings, partitions, asks, **options | NO_RESET)

    async def _read_to(
        self,
        reader: AIOKafkaConsumer,
        positions: dict[Partition, int],
        ends: Mapping[Partition, int],
    ) -> AsyncIterator[Sequence[Record]]:
        loop = asyncio.get_running_loop()
        patience_s = 2 * self._settings.transaction_timeout_ms / 1000 + EXPIRY_CHECK_S
        last_progress = loop.time()
        behind = dict(ends)
        while behind:
            # Only these: the buffered rest of a partition that is read to its end is not wanted.
            wanted = [TopicPartition(*p) for p in behind]
            for partition, records in (await read_some(reader, wanted, positions)).items():
                if records:
                    yield [r for r in records if r.offset < ends[partition]]
                    positions[partition] = records[-1].offset + 1
                    last_progress = loop.time()
            # position() moves past control records, which are never returned.
            for partition in list(behind):
                if await reader.position(TopicPartition(*partition)) >= behind[partition]:
                    del behind[partition]
                    reader.pause(TopicPartition(*partition))
            if loop.time() - last_progress > patience_s:
                waiting = ", ".join(map(str, behind))
                raise StillOpenError(
                    f"an open transaction on {waiting} has not ended in {patience_s} s"
                )

    async def fetch(self, partition: Partition, offsets: Collection[int]) -> Mapping[int, Record]:
        """Return the committed records at these offsets; missing ones are absent.

        Raises:
            LogError: one exists, and no broker returns it.
        """
        wanted = set(offsets)
        found: dict[int, Record] = {}
        async with self._reader([partition]) as reader:
            position = -1
            for offset in sorted(wanted):
                if offset < position:
                    continue
                records = await self._read_at(reader, partition, offset)
                # Of each 4 MiB received, perhaps one record is wanted.
                found |= {record.offset: record for record in records if record.offset in wanted}
                if records:
                    position = records[-1].offset + 1
        return found

    async def _read_at(
        self, reader: AIOKafkaConsumer, partition: Partition, offset: int
    ) -> Sequence[Record]:
        topic_partition = TopicPartition(*partition)
        reader.seek(topic_partition, offset)
        for _ in range(FETCH_TRIES):
            try:
                polled = await reader.getmany(topic_partition, timeout_ms=FETCH_MS)
            except PASSED_BY_SEEKING:
                reader.seek(topic_partition, offset)
                continue
            except OffsetOutOfRangeError:
                return ()
            if polled.get(topic_partition):
                return records_of(partition, polled[topic_partition])
            # The client returns the same if no broker answers as if there is nothing.
            if await reader.position(topic_partition) != offset:
                return ()
            first, end = (await self.bounds([partition]))[partition]
            if not first <= offset < end:
                return ()
        raise LogError(f"{partition} has a record at {offset}, and no broker gives it")

    async def fence(self, transactional_id: str) -> KafkaWriter:
        """Return the producer of this id; the broker aborts an earlier one's open transaction.

        Raises:
            TimeoutError: no broker fences it in time.
            LogError: no broker could be asked, another owner came between, or the brokers let no
                transaction be open for as long as the settings want.
        """
        async with contextlib.AsyncExitStack() as unless_returned:
            async with self._asked() as client:
                writer = await self._fence(client, transactional_id)
                unless_returned.push_async_callback(writer.close)
            unless_returned.pop_all()
            return writer

    async def _fence(self, client: AIOKafkaClient, transactional_id: str) -> KafkaWriter:
        owns = Catalogue(self._settings).owns
        await complete_commit(client, transactional_id, owns)
        producer = transactional_producer(self._settings, transactional_id)
        try:
            async with asyncio.timeout(FENCE_S_MAX):
                await start_writing(producer, self._settings)
            known = producer._txn_manager  # noqa: SLF001 - likewise
            fenced = Producer(transactional_id, known.producer_id, known.producer_epoch)
            await abort_rest(client, fenced, owns)
        except BaseException:
            await let_go(producer)
            raise
        return KafkaWriter(producer, fenced)
