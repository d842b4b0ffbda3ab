"""The ledger of a demo: all records of its topics, read to their ends."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from streams.engine.log import Partition, Record
from streams.kafka.log import KafkaLog
from topics import Catalogue, Evidence, Result, Settings, decode


@dataclass(slots=True)
class Ledger:
    """The topics' records of the published requests.

    ``results`` has the first of each request, without the answer's body; ``result_count`` the
    number of each.
    """

    results: dict[str, Result] = field(default_factory=dict)
    result_count: Counter[str] = field(default_factory=Counter)
    evidence: dict[str, list[Evidence]] = field(default_factory=dict)
    dead_letters: Counter[str] = field(default_factory=Counter)

    def take(self, record: Record, catalogue: Catalogue) -> None:
        """Add one record of the results, evidence or dead letters."""
        topic = record.partition.topic
        if topic == catalogue.dead_letters:
            self.dead_letters[(record.key or b"").decode("utf-8", "replace")] += 1
        elif topic == catalogue.results:
            result = decode(Result, record.value or b"")
            self.result_count[result.id] += 1
            self.results.setdefault(result.id, replace(result, response=None))
        elif topic == catalogue.evidence:
            step = decode(Evidence, record.value or b"")
            self.evidence.setdefault(step.request_id, []).append(step)

    def without(self, ids: Collection[str]) -> "Ledger":
        """Return the ledger less these requests."""
        return Ledger(
            {name: result for name, result in self.results.items() if name not in ids},
            Counter({name: n for name, n in self.result_count.items() if name not in ids}),
            {name: steps for name, steps in self.evidence.items() if name not in ids},
            Counter({name: n for name, n in self.dead_letters.items() if name not in ids}),
        )


async def read_ledger(settings: Settings) -> Ledger:
    """Return the committed records of the topics at this moment.

    Raises:
        BadRecordError: a record is not what its topic promises.
        LogError: a transaction stays open.
    """
    catalogue = Catalogue(settings)
    ledger = Ledger()
    partitions = [
        Partition(topic.name, number)
        for topic in catalogue.topics([])
        if topic.name in {catalogue.results, catalogue.evidence, catalogue.dead_letters}
        for number in range(topic.partitions)
    ]
    async for records in KafkaLog(settings).read(dict.fromkeys(partitions, 0)):
        for record in records:
            ledger.take(record, catalogue)
    return ledger
