"""Held requests, counted from the hold's log."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec

from streams.batcher.partition_state import held_at_of
from streams.engine.log import Record
from topics.records import headers as h

# A group's window ends with that of an early member; this many are examined.
LOOKED_AT_MAX = 1000


class _Profile(msgspec.Struct):
    """Times at which a held request is due, from its profile. Epoch seconds and seconds."""

    deadline: float
    window_s: float = 0.0
    longest_wait_s: float = 0.0
    batchable: bool = True


_decode_profile = msgspec.json.Decoder(_Profile).decode


@dataclass(frozen=True, slots=True)
class WaitingGroup:
    """A waiting batch group. Times are epoch seconds.

    ``due_at`` is when its first member's window ends, at the latest. A group is released before
    that if it is full or its slack runs out, and after it if no pool can take it.
    """

    group: str
    held: int
    oldest_at: float
    due_at: float


class HoldIndex:
    """The members of each group, by the ids that a tombstone names. No payload is kept.

    A member takes about 300 bytes. At most ``members_max`` are known; ``left_out`` counts the
    others, none of which is known to have been released.
    """

    def __init__(self, members_max: int) -> None:
        self._members_max = members_max
        self._groups: dict[str, dict[bytes, tuple[float, float]]] = {}
        self._group_of: dict[bytes, str] = {}
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._group_of)

    def take(self, record: Record) -> None:
        """Add a record of the hold.

        Raises:
            BadRecordError, msgspec.MsgspecError: a held request without what Shunter adds.
        """
        key = record.key or b""
        self._drop(key)
        if record.value is None:
            return
        group = (h.find(record.headers, h.GROUP) or b"").decode("utf-8", "replace")
        held_at = held_at_of(record)
        profile = _decode_profile(h.find(record.headers, h.PROFILE) or b"")
        if len(self._group_of) >= self._members_max:
            self.left_out += 1
            return
        wait_s = profile.window_s if profile.batchable else profile.longest_wait_s
        due_at = min(profile.deadline, held_at + wait_s)
        self._groups.setdefault(group, {})[key] = (held_at, due_at)
        self._group_of[key] = group

    def waiting(self) -> Iterator[WaitingGroup]:
        """Yield each non-empty group."""
        for group, members in self._groups.items():
            # In the order of the log, and so of time, within a group.
            early = list(islice(members.values(), LOOKED_AT_MAX))
            yield WaitingGroup(
                group,
                len(members),
                min(held_at for held_at, _ in early),
                min(due_at for _, due_at in early),
            )

    def _drop(self, key: bytes) -> None:
        group = self._group_of.pop(key, None)
        if group is not None:
            members = self._groups[group]
            del members[key]
            if not members:
                del self._groups[group]
