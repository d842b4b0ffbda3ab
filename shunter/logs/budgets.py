"""Read what budgets of a tenant have kept and used."""

from policies.placement.books import Books
from shunter.client.kafka import note
from shunter.logs.reading import place_of
from streams.engine.log import Partition, Record
from streams.kafka.log import KafkaLog
from streams.router.accounts import home_of
from topics import BadRecordError, Catalogue, Settings, decode
from topics.admin.provisioning import partition_counts
from topics.records.money import BudgetState


async def read_books(settings: Settings, tenant: str) -> Books:
    """Return the books that a tenant's accounts stand in, as of the last committed decision.

    An account that is unreadable here is reported and left out.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
    """
    catalogue = Catalogue(settings)
    partitions = await partition_counts(settings, [catalogue.budgets])
    home = Partition(catalogue.budgets, home_of(tenant, partitions[catalogue.budgets]))
    log, books = KafkaLog(settings), Books()
    first, end = (await log.bounds([home]))[home]
    newest: dict[bytes | None, Record] = {}
    if end > first:
        async for records in log.read({home: first}, {home: end}):
            newest.update((record.key, record) for record in records)
    for record in newest.values():
        if record.value is None:
            continue
        try:
            books.recall(decode(BudgetState, record.value))
        except BadRecordError as error:
            note(f"{place_of(record)} is left out: {error.message}")
    return books
