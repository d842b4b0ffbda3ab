"""The salts of all tenants, followed on their topic."""

import logging

from streams.engine.log import Record
from streams.engine.text_digests import Digests
from streams.kafka.follower import TopicFollower
from topics import BadRecordError, Catalogue, Salt, Settings, decode

logger = logging.getLogger(__name__)


class SaltFollower(TopicFollower):
    """Keeps the salts up to date."""

    def __init__(self, settings: Settings, digests: Digests) -> None:
        super().__init__(settings, Catalogue(settings).evidence_salts)
        self._digests = digests

    def take(self, record: Record) -> None:
        """Process a salt, or its deletion."""
        if record.value is None:
            salt_id, _, tenant = (record.key or b"").decode("utf-8", "replace").partition("/")
            self._digests.remove(tenant, salt_id)
            return
        try:
            self._digests.add(decode(Salt, record.value))
        except (BadRecordError, ValueError) as error:
            logger.warning("a salt is unreadable: %s", error)
