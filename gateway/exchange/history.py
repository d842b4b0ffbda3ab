"""Pieces of a stream read back from the log, for who joins it while it runs."""

import asyncio

import orjson
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from gateway.exchange.mailbox import PiecesBefore
from gateway.exchange.publisher import UnavailableError
from streams.engine.log import Partition
from streams.kafka.reader import PASSED_BY_SEEKING, reader
from streams.kafka.record_batches import records_of
from streams.kafka.writer import partition_of
from topics import Catalogue, Settings
from topics.admin.provisioning import AdminError, partition_counts

SEARCH_S_MAX = 20.0
# Clocks of gateway and worker may differ by so much.
CLOCKS_S = 60.0
POLL_MS = 200
# Searches at once; each reads part of a partition.
AT_ONCE = 4


class StreamHistory:
    """Finds what a run has told so far; like live pieces, before it is committed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = Catalogue(settings).streams
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def find(self, request_id: str, since: float) -> PiecesBefore:
        """Return the pieces, as ``Exchange.pieces``."""
        try:
            async with self._turns, asyncio.timeout(SEARCH_S_MAX):
                return await self._search(request_id.encode(), since)
        except (KafkaError, AdminError, TimeoutError, OSError) as error:
            raise UnavailableError(f"the streams can't be searched: {error!r}") from error

    async def _search(self, key: bytes, since: float) -> PiecesBefore:
        counts = await partition_counts(self._settings, [self._topic])
        home = Partition(self._topic, partition_of(key, counts[self._topic]))
        partition = TopicPartition(*home)
        options = {"isolation_level": "read_uncommitted"}
        async with reader(self._settings, [home], **options) as asked:
            end = (await asked.end_offsets([partition]))[partition]
            times = {partition: int(max(0.0, since - CLOCKS_S) * 1000)}
            first = (await asked.offsets_for_times(times)).get(partition)
            found: list[bytes] = []
            position = end if first is None else first.offset
            asked.seek(partition, position)
            while position < end:
                try:
                    polled = await asked.getmany(partition, timeout_ms=POLL_MS)
                except PASSED_BY_SEEKING:
                    asked.seek(partition, position)
                    continue
                for record in records_of(home, polled.get(partition, [])):
                    if record.key != key or record.value is None or record.offset >= end:
                        continue
                    if orjson.loads(record.value).get("index") == 0:
                        found.clear()
                    found.append(record.value)
                position = await asked.position(partition)
        return PiecesBefore(found, end)
