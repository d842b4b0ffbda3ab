"""What the hold still has: keys whose newest record is no tombstone."""

from aiokafka import AIOKafkaConsumer, TopicPartition
from system import System


async def held_now(system: System) -> int:
    """Return the number of requests in the hold, read_committed."""
    topic = system.catalogue.held
    consumer = AIOKafkaConsumer(
        bootstrap_servers=system.bootstrap_servers, isolation_level="read_committed"
    )
    await consumer.start()
    held: dict[bytes, bool] = {}
    try:
        await consumer._client.set_topics([topic])
        numbers = consumer.partitions_for_topic(topic) or ()
        partitions = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        for partition, end in (await consumer.end_offsets(partitions)).items():
            while await consumer.position(partition) < end:
                polled = await consumer.getmany(partition, timeout_ms=200, max_records=5000)
                for record in polled.get(partition, ()):
                    held[record.key] = record.value is not None
    finally:
        await consumer.stop()
    return sum(held.values())
