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
# The first run of a key that no claim tells of is numbered by the hour, with so many numbers for
# those after it. What was asked with the key before has another id then: routers may know that
# yet, and a request under it would be a duplicate, which has no result.
HOUR_S, RUNS_AN_HOUR = 3600, 1000
# Gateways that claim a key for the first time within this, by their clocks, mean the same run,
# though an hour begins between them.
TOGETHER_S = 60.0


def first_run(now: float) -> int:
    """Return the number of a key's first run that is claimed at a time."""
    return int(now // HOUR_S) * RUNS_AN_HOUR


@dataclass(slots=True)
class HeldKey:
    """The newest run of a key.

    Attributes:
        claim: its first claim.
        joined_at: when somebody last joined it.
        told: the latest number that a claim of it had.
    """

    claim: KeyClaim
    joined_at: float
    told: int

    def is_meant_by(self, claim: KeyClaim) -> bool:
        """Return True if a claim is of this run."""
        if claim.run == self.claim.run:
            return True
        is_first = claim.run % RUNS_AN_HOUR == 0 < claim.run - self.claim.run
        return is_first and abs(claim.at - self.claim.at) < TOGETHER_S


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
        if held is not None and held.is_meant_by(claim):
            held.joined_at = max(held.joined_at, claim.at)
            held.told = max(held.told, claim.run)
        elif held is None or claim.run > held.claim.run:
            self._held.put(name, HeldKey(claim, claim.at, claim.run))
        self._news.set()

    def find(self, name: str) -> HeldKey | None:
        """Return the newest run of a key, None if nobody has claimed it."""
        return self._held.get(name)

    async def seen(self, name: str, run: int) -> HeldKey:
        """Wait until a claim of a run is known here, and return the run that it is of or a newer.

        Raises:
            TimeoutError: it has not come, though it was written.
        """
        async with asyncio.timeout(SEEN_S_MAX):
            while True:
                held = self.find(name)
                if held is not None and held.told >= run:
                    return held
                self._news.clear()
                await self._news.wait()
