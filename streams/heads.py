"""The service that publishes a process's key before anything is signed, and its heads after."""

from mode import Service

from streams.announcer import Announcer
from streams.notary import Notary
from topics import Catalogue, KeyEntry, Settings, encode


class HeadsService(Service):  # type: ignore[misc]
    """Tells, at a steady beat, how far each chain has come: what is cut off then, shows."""

    mundane_level = "debug"

    def __init__(self, settings: Settings, notary: Notary) -> None:
        super().__init__()
        self._settings = settings
        self._announcer = Announcer(settings, Catalogue(settings).evidence_keys)
        self._notary = notary

    async def on_start(self) -> None:
        """Publish the key; nobody could check a root before that."""
        await self._announcer.start()
        valid_s = self._settings.evidence_key_valid_s
        published = self._notary.publish(valid_s)
        key = f"key/{published.statement.key}".encode()
        await self._announcer.publish(key, encode(KeyEntry(published=published)))

    @Service.task  # type: ignore[untyped-decorator]
    async def _beat(self) -> None:
        while not self.should_stop:
            await self.sleep(self._settings.evidence_heads_s)
            if not self.should_stop:
                await self._announcer.tell(*self._heads())

    async def on_stop(self) -> None:
        """Tell the last heads."""
        await self._announcer.stop(*self._heads())

    def _heads(self) -> tuple[bytes, bytes]:
        heads = self._notary.heads()
        return f"heads/{heads.statement.key}".encode(), encode(KeyEntry(heads=heads))
