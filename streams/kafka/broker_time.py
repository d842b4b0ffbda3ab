"""Check that record times are the broker's."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition

from topics import Catalogue, Settings
from topics.registry import BROKERS_TIME

logger = logging.getLogger(__name__)

# The client's code for a record's time.
_BROKERS = 1


class Stamps:
    """Warns once per topic that should have broker time but has its writers' time."""

    def __init__(self, settings: Settings) -> None:
        topics = Catalogue(settings).shared_topics()
        self._unwarned = {t.name for t in topics if BROKERS_TIME.items() <= t.config().items()}

    def look(self, polled: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Check the first record of each partition; a topic has only one setting at a time."""
        for partition, records in polled.items():
            # An unreadable record has no value, nor anything else.
            if partition.topic not in self._unwarned or not records or records[0].value is None:
                continue
            if records[0].timestamp_type != _BROKERS:
                self._unwarned.discard(partition.topic)
                logger.warning(
                    "%s has not the broker's time but that of whoever writes: who gives old times"
                    " passes its rate; `shunter topics describe` tells which setting differs",
                    partition.topic,
                )
