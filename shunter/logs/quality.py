"""Read what is known of how variants answer."""

from policies.quality.verdict_state import KnownQuality
from shunter.client.kafka import note
from shunter.logs.reading import place_of, read_all
from streams.kafka.log import KafkaLog
from topics import BadRecordError, Catalogue, QualityEntry, Settings, decode
from topics.admin.provisioning import partition_counts


async def read_known(settings: Settings) -> KnownQuality:
    """Return what the topic says; a record that is unreadable here is reported and left out.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
    """
    topic, known = Catalogue(settings).quality, KnownQuality()
    await partition_counts(settings, [topic])
    async for record in read_all(KafkaLog(settings), topic, 1):
        if record.value is None:
            continue
        try:
            known.take(decode(QualityEntry, record.value))
        except BadRecordError as error:
            note(f"{place_of(record)} is left out: {error.message}")
    return known
