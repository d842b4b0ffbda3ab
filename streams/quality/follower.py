"""Follow the verdicts of the quality watch: every router keeps to them."""

import logging
from collections.abc import Callable, Mapping

from policies.quality.verdict_state import KnownQuality
from streams.engine.log import Record
from streams.kafka.follower import TopicFollower
from topics import BadRecordError, Catalogue, QualityEntry, Settings, decode

logger = logging.getLogger(__name__)

Changed = Callable[[Mapping[str, frozenset[str]]], object]
"""Receives by pool the variants that have drifted."""


class QualityFollower(TopicFollower):
    """Keeps what is known up to date, and tells of each change of a verdict."""

    def __init__(self, settings: Settings, known: KnownQuality, changed: Changed) -> None:
        super().__init__(settings, Catalogue(settings).quality)
        self._known = known
        self._changed = changed

    def take(self, record: Record) -> None:
        """Take an entry; one that is unreadable here changes nothing."""
        if record.value is None:
            return
        try:
            entry = decode(QualityEntry, record.value)
        except BadRecordError as error:
            logger.warning("what %s says of answers is unreadable: %s", record.key, error.message)
            return
        if self._known.take(entry):
            self._changed(self._known.drifted())
