"""The service that publishes a process's key before anything is signed, and its heads after.

The broker's answers carry its time, by which the process's clock is set.
"""

import logging

from aiokafka.structs import RecordMetadata
from mode import Service

from streams.engine.clock import BrokerClock
from streams.engine.signer import Signer
from streams.kafka.announcer import Announcer
from streams.service import QuietService
from topics import Catalogue, KeyEntry, Settings, encode
from topics.signing.keys import SigningKey

# Code for a record's time, in the answer to its writer.
_BROKERS_TIME = 1

logger = logging.getLogger(__name__)


class HeadPublisher(QuietService):
    """Publishes the head of each chain periodically: a chain cut off later is detected."""

    def __init__(
        self,
        settings: Settings,
        signer: Signer,
        clock: BrokerClock,
        introducer: SigningKey | None = None,
    ) -> None:
        """Take what is published; with an introducer an introduction by it is, too."""
        super().__init__()
        self._introducer = introducer
        self._clock = clock
        self._settings = settings
        self._topic = Catalogue(settings).evidence_keys
        self._announcer = Announcer(settings, self._topic)
        self._signer = signer
        self._has_warned = False

    async def on_start(self) -> None:
        """Publish the key; no root can be checked before that."""
        await self._announcer.start()
        if await self._publish():
            # The first one was valid from a wrong time.
            await self._publish()

    @Service.task  # type: ignore[untyped-decorator]
    async def _beat(self) -> None:
        while not self.should_stop:
            await self.sleep(self._settings.evidence_heads_s)
            if not self.should_stop:
                sent_at = self._clock.machine.now()
                self._hear(await self._announcer.tell(*self._heads()), sent_at)

    async def on_stop(self) -> None:
        """Publish the last heads."""
        await self._announcer.stop(self._heads())

    async def _publish(self) -> bool:
        """Publish the key, and return whether the answer has moved the clock."""
        published = self._signer.publish(self._settings.evidence_key_valid_s)
        key = f"key/{published.statement.key}".encode()
        sent_at = self._clock.machine.now()
        answer = await self._announcer.publish(key, encode(KeyEntry(published=published)))
        if self._introducer is not None:
            valid_s = self._settings.evidence_key_valid_s
            entry = KeyEntry(introduction=self._signer.introduce(self._introducer, valid_s))
            await self._announcer.publish((entry.name or "").encode(), encode(entry))
        return self._hear(answer, sent_at)

    def _heads(self) -> tuple[bytes, bytes]:
        heads = self._signer.heads()
        return f"heads/{heads.statement.key}".encode(), encode(KeyEntry(heads=heads))

    def _hear(self, answer: RecordMetadata | None, sent_at: float) -> bool:
        """Set the clock by an answer, and return whether that has moved it."""
        if answer is None:
            return False
        if answer.timestamp_type != _BROKERS_TIME:
            self._warn()
        elif answer.timestamp > 0:  # It is unknown for a record that was sent twice.
            return self._clock.told(answer.timestamp / 1000, sent_at, self._clock.machine.now())
        return False

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s has not the broker's time: the clocks of hosts count as they are, and must not"
                " be seconds apart; `shunter topics describe` tells which setting differs",
                self._topic,
            )
