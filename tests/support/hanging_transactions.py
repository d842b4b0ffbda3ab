"""Transactions that hang on one partition of two."""

from aiokafka import AIOKafkaProducer, TopicPartition

from topics import Settings

TOPIC = "inference.results"


async def leave_hanging(
    settings: Settings, transactional_id: str, value: bytes, *, committed: bool
) -> None:
    """Leave a record on partition 1 in a transaction whose marker reaches only partition 0."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=transactional_id
    )
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(TOPIC, value, partition=0)
    manager = producer._txn_manager
    manager._txn_partitions.add(TopicPartition(TOPIC, 1))
    await producer.send_and_wait(TOPIC, value, partition=1)
    await (producer.commit_transaction() if committed else producer.abort_transaction())
    await producer.stop()
