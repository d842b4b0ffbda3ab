"""Follow the heartbeats: every router and batcher reads all of them."""

import logging
from collections.abc import Callable

from streams.engine.log import Record
from streams.kafka.follower import TopicFollower
from topics import BadRecordError, Catalogue, PoolStatus, Settings, decode

logger = logging.getLogger(__name__)


class FleetFollower(TopicFollower):
    """Forwards every heartbeat."""

    def __init__(self, settings: Settings, report: Callable[[PoolStatus], object]) -> None:
        super().__init__(settings, Catalogue(settings).pool_status)
        self._report = report

    def take(self, record: Record) -> None:
        """Forward a heartbeat."""
        if record.value is None:
            return
        try:
            self._report(decode(PoolStatus, record.value))
        except BadRecordError as error:
            # A missed heartbeat makes the view a little older; nothing is lost.
            logger.warning("a heartbeat of %s is unreadable: %s", record.key, error.message)
