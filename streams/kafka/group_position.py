"""The position of a group member: how far it is behind, and the offsets that its group is told."""

import asyncio
import contextlib
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError

from streams.engine.log import LogError, Partition

# A newly assigned partition may have no position yet.
POSITION_S_MAX = 0.1
LAG_S_MAX = 2.0
OFFSETS_S_MAX = 5.0
# Errors of a client that is asked for its lag, or tells its offsets: no answer, no broker, no share
# of the group, its own end.
UNTOLD = (TimeoutError, KafkaError, ConsumerStoppedError, OSError)


async def commit_offsets(consumer: AIOKafkaConsumer, offsets: Mapping[Partition, int]) -> None:
    """Set the group's offsets.

    Raises:
        LogError: not now.
    """
    try:
        async with asyncio.timeout(OFFSETS_S_MAX):
            await consumer.commit({TopicPartition(*p): offset for p, offset in offsets.items()})
    except UNTOLD as error:
        raise LogError(f"the group's offsets are not committed: {error!r}") from error


async def lags(consumer: AIOKafkaConsumer) -> dict[Partition, int]:
    """Return how many offsets below the last stable one each partition of a member is behind.

    The broker is asked for the ends: those of the last fetch grow old while a partition is paused.
    Its answer comes after that to a fetch in flight, which it may delay for 0.5 s.
    """
    found: dict[Partition, int] = {}
    # The member detects its own faults.
    with contextlib.suppress(*UNTOLD):
        async with asyncio.timeout(LAG_S_MAX):
            ends = await consumer.end_offsets(consumer.assignment())
        for partition, end in ends.items():
            with contextlib.suppress(*UNTOLD):
                async with asyncio.timeout(POSITION_S_MAX):
                    position = await consumer.position(partition)
                found[Partition(*partition)] = max(0, end - position)
    return found
