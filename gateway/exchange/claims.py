"""The request that each ``Idempotency-Key`` stands for, the same at every gateway."""

import asyncio
from dataclasses import dataclass

from streams.engine.log import Record
from streams.kafka.follower import TopicFollower
from topics import Catalogue, KeyClaim, Settings, decode
from topics.bounded_dict import BoundedDict

# Keys of a day; some 500 bytes each. The oldest are forgotten first.
KEYS_MAX = 200_000
SEEN_S_MAX = 5.0


@dataclass(slots=True)
class HeldKey:
    """The newest run of a key: its first claim, and when somebody last joined it."""

    claim: KeyClaim
    joined_at: float


class ClaimFollower(TopicFollower):
    """Knows the newest run of each key; the first claim of a run in the log counts."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Catalogue(settings).claims)
        self._held: BoundedDict[str, HeldKey] = BoundedDict(KEYS_MAX)
        self._news = asyncio.Event()

    def take(self, record: Record) -> None:
        """Take in a claim."""
        claim = decode(KeyClaim, record.value or b"")
        name = (record.key or b"").decode()
        held = self._held.get(name)
        if held is None or claim.run > held.claim.run:
            self._held.put(name, HeldKey(claim, claim.at))
        elif claim.run == held.claim.run:
            held.joined_at = max(held.joined_at, claim.at)
        self._news.set()

    def find(self, name: str) -> HeldKey | None:
        """Return the newest run of a key, None if nobody has claimed it."""
        return self._held.get(name)

    async def seen(self, name: str, run: int) -> HeldKey:
        """Wait until a run of a key is known here, and return it or a newer one.

        Raises:
            TimeoutError: it has not come, though it was written.
        """
        async with asyncio.timeout(SEEN_S_MAX):
            while True:
                held = self.find(name)
                if held is not None and held.claim.run >= run:
                    return held
                self._news.clear()
                await self._news.wait()
