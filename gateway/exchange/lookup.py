"""Results read back from the log, by id."""

import asyncio

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from gateway.exchange.dispatcher import Dispatcher
from gateway.exchange.publisher import UnavailableError
from streams.engine.log import LogError, Partition
from streams.kafka.log import KafkaLog
from streams.kafka.reader import reader
from streams.kafka.writer import partition_of
from topics import Catalogue, Result, Settings, decode
from topics.admin.provisioning import AdminError, partition_counts

LOOKUP_S_MAX = 20.0
# Clocks of gateway and worker may differ by so much.
CLOCKS_S = 60.0
# Searches at once; each reads part of a partition.
AT_ONCE = 4


class ResultLookup:
    """Finds results that have ended before somebody asked for them."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher) -> None:
        self._settings = settings
        self._topic = Catalogue(settings).results
        self._dispatcher = dispatcher
        self._log = KafkaLog(settings)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def find(self, request_id: str, since: float | None) -> Result | None:
        """Return a result by its request's id, as ``Exchange.result``."""
        key = request_id.encode()
        try:
            async with self._turns, asyncio.timeout(LOOKUP_S_MAX):
                place = self._dispatcher.places.get(key)
                value = await self._search(key, since) if place is None else None
                if place is not None:
                    found = await self._log.fetch(place[0], [place[1]])
                    value = None if place[1] not in found else found[place[1]].value
        except (KafkaError, AdminError, LogError, TimeoutError, OSError) as error:
            raise UnavailableError(f"the results can't be searched: {error!r}") from error
        return None if value is None else decode(Result, value)

    async def _search(self, key: bytes, since: float | None) -> bytes | None:
        counts = await partition_counts(self._settings, [self._topic])
        home = Partition(self._topic, partition_of(key, counts[self._topic]))
        bounds = await self._log.bounds([home])
        first, end = bounds[home]
        if since is not None:
            first = max(first, await self._first_since(home, since - CLOCKS_S, end))
        async for records in self._log.read({home: first}, {home: end}):
            for record in records:
                if record.key == key and record.value is not None:
                    self._dispatcher.places.put(key, (record.partition, record.offset))
                    return record.value
        return None

    async def _first_since(self, home: Partition, since: float, end: int) -> int:
        partition = TopicPartition(*home)
        async with reader(self._settings, asks=[home.topic]) as asked:
            found = await asked.offsets_for_times({partition: int(max(0.0, since) * 1000)})
        there = found.get(partition)
        return end if there is None else int(there.offset)
