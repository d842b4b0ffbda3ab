"""Which gateways live, as each of them sees the others in an object store."""

import secrets
from dataclasses import dataclass

from streams.engine.clock import Clock
from topics.objects import Objects

BEAT_S = 2.0
# A gateway that has not told for so long that it lives is taken for dead: what it owned is taken.
GONE_S = 12.0
# One that could not tell for so long begins nothing, before others may take it for dead.
SURE_S = 6.0
# What a dead one told is deleted after this time.
FORGET_S = 120.0
# Another is looked at so often, however many batches it has.
ASK_S = 1.0
_FOLDER = "gateways"


@dataclass(frozen=True, slots=True)
class _Seen:
    """Another's sign of life, since when it has been the same, and when it was last read."""

    told: bytes
    since: float
    asked_at: float


class SignsOfLife:
    """One process among those that share a store; ``name`` is new each time that it was cut off.

    A name that is not there lives no more. That two write one log is not for this class to prevent:
    see ``object_log``.
    """

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self.name = secrets.token_hex(8)
        self._objects = objects
        self._clock = clock
        self._beats = 0
        self._beaten_at = float("-inf")
        self._seen: dict[str, _Seen] = {}

    def beat(self) -> None:
        """Tell that this process lives."""
        self._beats += 1
        at = self._clock.now()
        if not self.is_sure and self._beats > 1:
            # Others may have taken what this process owned: it is another one from now on.
            self._objects.delete(self._place(self.name))
            self.name = secrets.token_hex(8)
        self._objects.write(self._place(self.name), b"%d" % self._beats)
        self._beaten_at = at

    def leave(self) -> None:
        """Tell that it ends, so that nobody waits."""
        self._beaten_at = float("-inf")
        self._objects.delete(self._place(self.name))

    @property
    def is_sure(self) -> bool:
        """True if no other takes this process for dead now."""
        return abs(self._clock.now() - self._beaten_at) < SURE_S

    def is_gone(self, name: str) -> bool:
        """Return whether another process is dead: it has told nothing for a while."""
        if name == self.name:
            return False
        now = self._clock.now()
        seen = self._seen.get(name)
        if seen is None or abs(now - seen.asked_at) >= ASK_S:
            told = self._objects.read(self._place(name))
            if told is None:
                self._seen.pop(name, None)
                return True
            since = now if seen is None or told != seen.told else seen.since
            seen = self._seen[name] = _Seen(told, since, now)
        return abs(now - seen.since) > GONE_S

    def sweep(self) -> None:
        """Delete what dead processes have told."""
        for name in self._objects.names(_FOLDER):
            if not self.is_gone(name) or (seen := self._seen.get(name)) is None:
                continue
            if self._clock.now() - seen.since > FORGET_S:
                self._objects.delete(self._place(name))
                del self._seen[name]

    def _place(self, name: str) -> str:
        return f"{_FOLDER}/{name}"
