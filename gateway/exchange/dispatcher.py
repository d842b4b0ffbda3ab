"""The one reader of a process: it gives each record to the mailbox of its request."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from gateway.exchange.mailbox import Mailbox
from streams.engine.log import Partition, Record
from streams.kafka.reader import PASSED_BY_SEEKING, close_consumer, consumer_options
from streams.kafka.record_batches import records_of
from topics import Catalogue, Settings
from topics.admin.provisioning import AdminError, partition_counts
from topics.bounded_dict import BoundedDict

POLL_S = 1.0
POLL_RECORDS_MAX = 2000
# Positions of the newest results, so that one that is asked for later need not be searched.
PLACES_MAX = 50_000
# Requests whose end is told besides; far more than one gateway has open.
ENDS_MAX = 50_000

logger = logging.getLogger(__name__)


class Dispatcher:
    """Follows results, quotes and streams from now on, of all partitions and in no group.

    Results and quotes are read committed. Pieces are outside of any transaction, and read as they
    come: they do not wait for the transactions that end other streams on their partition. The end
    of a stream on the streams topic may be of a transaction that is aborted, so it is the result
    that counts.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        catalogue = Catalogue(settings)
        self._results, self._streams = catalogue.results, catalogue.streams
        self._quotes = catalogue.quote_answers
        self._boxes: dict[bytes, list[Mailbox]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._consumers: list[AIOKafkaConsumer] = []
        self.places: BoundedDict[bytes, tuple[Partition, int]] = BoundedDict(PLACES_MAX)
        """By request id, where its result stands."""
        self._ends: BoundedDict[bytes, Callable[[bytes], None]] = BoundedDict(ENDS_MAX)

    async def start(self) -> None:
        """Begin to follow; what is committed from now on is seen.

        Raises:
            AdminError: Kafka can't be reached, or a topic is missing.
        """
        topics = [self._results, self._quotes, self._streams]
        counts = await partition_counts(self._settings, topics)
        for read, isolation in ((topics[:2], "read_committed"), (topics[2:], "read_uncommitted")):
            options = consumer_options(self._settings) | {
                "auto_offset_reset": "latest",
                "isolation_level": isolation,
            }
            consumer = AIOKafkaConsumer(**options)
            consumer.assign([TopicPartition(each, n) for each in read for n in range(counts[each])])
            self._consumers.append(consumer)
            await consumer.start()
            if not await consumer.seek_to_end():
                told = ", ".join(read)
                raise AdminError(f"{self._settings.bootstrap_servers} does not tell {told}'s end")
        self._tasks = [asyncio.create_task(self._follow(each)) for each in self._consumers]

    async def stop(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for consumer in self._consumers:
            await close_consumer(consumer)

    @property
    def failure(self) -> BaseException | None:
        """The error that ended the reading; None while it goes on."""
        ended = [task for task in self._tasks if task.done() and not task.cancelled()]
        return next((task.exception() for task in ended), None)

    async def failed(self) -> None:
        """Wait until the reading ends by an error, and raise that."""
        await asyncio.gather(*self._tasks)

    def open(self, request_id: str) -> Mailbox:
        """Return a mailbox for a request, to be opened before it is published."""
        box = Mailbox(request_id)
        self._boxes.setdefault(request_id.encode(), []).append(box)
        return box

    def close(self, box: Mailbox) -> None:
        """Forget a mailbox."""
        key = box.request_id.encode()
        left = [each for each in self._boxes.get(key, ()) if each is not box]
        if left:
            self._boxes[key] = left
        else:
            self._boxes.pop(key, None)

    def when_ended(self, request_id: str, take: Callable[[bytes], None]) -> None:
        """Give a request's result to a function too, before a mailbox, whoever waits by then."""
        self._ends.put(request_id.encode(), take)

    def is_open(self, request_id: str) -> bool:
        """Return whether somebody here waits for a request."""
        return request_id.encode() in self._boxes

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                polled = await consumer.getmany(
                    timeout_ms=int(POLL_S * 1000), max_records=POLL_RECORDS_MAX
                )
            except PASSED_BY_SEEKING as error:
                logger.warning("records are read again: %r", error)
                continue
            for partition, records in polled.items():
                self._dispatch(records_of(Partition(*partition), records))
            # Whoever was woken goes on before the next records are taken.
            await asyncio.sleep(0)

    def _dispatch(self, records: Sequence[Record]) -> None:
        for record in records:
            key, value = record.key, record.value
            if key is None or value is None or record.unreadable is not None:
                continue
            topic = record.partition.topic
            if topic == self._results:
                self.places.put(key, (record.partition, record.offset))
                if (take := self._ends.pop(key, None)) is not None:
                    take(value)
            for box in self._boxes.get(key, ()):
                if topic == self._results:
                    box.put_result(value)
                elif topic == self._quotes:
                    box.put_quote(value)
                else:
                    box.put_piece(value, record.offset)
