"""Read the newest heartbeats of all workers."""

from policies.fleet_state.view import is_live
from shunter.client.kafka import note
from shunter.logs.reading import place_of, read_all
from streams.kafka.log import KafkaLog
from topics import BadRecordError, Catalogue, PoolStatus, Settings, decode
from topics.admin.provisioning import partition_counts


async def read_heartbeats(settings: Settings, now: float) -> list[PoolStatus]:
    """Return the newest heartbeat of each worker that still reports at ``now``, epoch seconds.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
    """
    topic = Catalogue(settings).pool_status
    await partition_counts(settings, [topic])
    newest: dict[bytes | None, PoolStatus] = {}
    async for record in read_all(KafkaLog(settings), topic, 1):
        newest.pop(record.key, None)
        if record.value is None:
            continue
        try:
            newest[record.key] = decode(PoolStatus, record.value)
        except BadRecordError as error:
            note(f"{place_of(record)} is left out: {error.message}")
    return [status for status in newest.values() if is_live(status, now)]
