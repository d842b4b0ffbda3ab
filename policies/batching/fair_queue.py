"""The order of a group's members: by deadline, and fair among tenants.

The order is maintained as members come and go: sorting half a million at each look would take a
second and block the router of the same process.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from heapq import heapify, heappop, heapreplace

from topics import Profile
from topics.records.frozen import dataclass

ShareOf = Callable[[str], float]
# Into a long list a few are put where they belong; for more it is sorted again.
INSERTED_MAX = 256


@dataclass(frozen=True, slots=True)
class Member:
    """A held request. ``held_at`` is epoch seconds, ``offset`` its offset in the hold log."""

    profile: Profile
    group: str
    held_at: float
    offset: int


@dataclass(frozen=False, slots=True)
class _Queue:
    """The members of one tenant by deadline, from ``first`` on. Some may have left."""

    members: list[Member] = field(default_factory=list)
    first: int = 0

    def add(self, new: list[Member]) -> None:
        """Insert members in order."""
        members = self.members
        new.sort(key=_by_deadline)
        if not members or _by_deadline(new[0]) > _by_deadline(members[-1]):
            members += new
        elif len(new) <= INSERTED_MAX:
            for member in new:
                # Not before the first, where nobody looks.
                insort(members, member, lo=self.first, key=_by_deadline)
        else:
            self.members = sorted([*members[self.first :], *new], key=_by_deadline)
            self.first = 0


class Turns:
    """The members of a mapping by id, in turn.

    Tenants take turns, one with twice the share of another twice as often, and each tenant's
    members go by deadline. Callers that change the mapping must call ``add`` and ``remove``.
    """

    def __init__(self, held: Mapping[str, Member], share_of: ShareOf) -> None:
        self._held = held
        self._share_of = share_of
        self._queues: dict[str, _Queue] = {}
        self._fresh: list[Member] = []
        self._gone = 0

    def add(self, member: Member) -> None:
        """Record a new member."""
        self._fresh.append(member)

    def remove(self) -> None:
        """Record that a member has left; it is dropped when enough have left."""
        self._gone += 1
        if self._gone > len(self._held) // 4 + INSERTED_MAX:
            self._gone = 0
            self._queues.clear()
            self._fresh = list(self._held.values())

    def passed(self, now: float) -> list[Member]:
        """Return the members whose deadline has passed at this time, epoch seconds."""
        self._sort()
        found = []
        for queue in self._queues.values():
            for index in range(queue.first, len(queue.members)):
                member = queue.members[index]
                if member.profile.deadline > now:
                    break
                if self._is_held(member):
                    found.append(member)
        return sorted(found, key=_by_deadline)

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in turn. None may come or go during the iteration."""
        self._sort()
        heap = []
        for tenant, queue in self._queues.items():
            step = 1.0 / self._share_of(tenant)
            following = self._following(queue, queue.first)
            if following is not None:
                index, member = following
                heap.append((step, _by_deadline(member), step, queue, index, member))
        heapify(heap)
        while heap:
            turn, _, step, queue, index, member = heap[0]
            yield member
            following = self._following(queue, index + 1)
            if following is None:
                heappop(heap)
            else:
                index, member = following
                heapreplace(heap, (turn + step, _by_deadline(member), step, queue, index, member))

    def _following(self, queue: _Queue, index: int) -> tuple[int, Member] | None:
        while index < len(queue.members):
            member = queue.members[index]
            if self._is_held(member):
                return index, member
            index += 1
        return None

    def _is_held(self, member: Member) -> bool:
        return self._held.get(member.profile.id) is member

    def _sort(self) -> None:
        """Insert new members in order, and skip those that have left at the front."""
        fresh: dict[str, list[Member]] = {}
        for member in self._fresh:
            if self._is_held(member):
                fresh.setdefault(member.profile.tenant, []).append(member)
        self._fresh.clear()
        for tenant, members in fresh.items():
            self._queues.setdefault(tenant, _Queue()).add(members)
        for tenant, queue in list(self._queues.items()):
            following = self._following(queue, queue.first)
            if following is None:
                del self._queues[tenant]
                continue
            queue.first, _ = following
            if queue.first > len(queue.members) // 2:
                del queue.members[: queue.first]
                queue.first = 0


def _by_deadline(member: Member) -> tuple[float, float, str]:
    return member.profile.deadline, member.held_at, member.profile.id
