"""The service that publishes a process's key before anything is signed, and its heads after."""

import asyncio
import contextlib

from aiokafka import AIOKafkaProducer
from mode import Service

from streams.notary import Notary
from topics import Catalogue, KeyEntry, Settings, encode

FAREWELL_S_MAX = 2.0


class HeadsService(Service):  # type: ignore[misc]
    """Tells, at a steady beat, how far each chain has come: what is cut off then, shows."""

    mundane_level = "debug"

    def __init__(self, settings: Settings, notary: Notary) -> None:
        super().__init__()
        self._settings = settings
        self._topic = Catalogue(settings).evidence_keys
        self._notary = notary
        self._producer: AIOKafkaProducer | None = None

    async def on_start(self) -> None:
        """Publish the key; nobody could check a root before that."""
        producer = AIOKafkaProducer(
            **self._settings.kafka_options(), acks="all", enable_idempotence=True
        )
        await producer.start()
        self._producer = producer
        valid_s = self._settings.evidence_key_valid_s
        published = self._notary.publish(valid_s)
        await self._send(f"key/{published.statement.key}", KeyEntry(published=published))

    @Service.task  # type: ignore[untyped-decorator]
    async def _beat(self) -> None:
        while not self.should_stop:
            await self.sleep(self._settings.evidence_heads_s)
            if not self.should_stop:
                await self._tell_heads()

    async def on_stop(self) -> None:
        """Tell the last heads; without a broker nobody could hear it."""
        if self._producer is None:  # what starts before us has failed
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S_MAX):
                await self._tell_heads()
                await self._producer.stop()

    async def _tell_heads(self) -> None:
        heads = self._notary.heads()
        await self._send(f"heads/{heads.statement.key}", KeyEntry(heads=heads))

    async def _send(self, key: str, entry: KeyEntry) -> None:
        assert self._producer is not None  # noqa: S101  made when we start
        await self._producer.send_and_wait(self._topic, encode(entry), key=key.encode())
