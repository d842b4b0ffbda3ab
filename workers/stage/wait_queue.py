"""Queue of requests that a worker has taken and not started: tenants take turns."""

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Generic, TypeVar

from policies.batching.fair_queue import ShareOf

Entry = TypeVar("Entry")


class WaitQueue(Generic[Entry]):
    """Entries in turn: each tenant's in order of arrival, twice the share twice as often.

    So a tenant that has sent a thousand before another delays that other by a turn or two, and not
    until all thousand have run. A new tenant has no credit for the time before
    (self-clocked fair queueing: Golestani 1994).
    """

    def __init__(self, share_of: ShareOf) -> None:
        self._share_of = share_of
        self._lines: dict[str, deque[Entry]] = {}
        # Each tenant of whom something waits, once: its turn, a serial number, its name.
        self._turns: list[tuple[float, int, str]] = []
        self._turn = 0.0
        self._serial = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries, tenant by tenant."""
        return chain.from_iterable(self._lines.values())

    def add(self, tenant: str, entry: Entry) -> None:
        """Add an entry."""
        if tenant not in self._lines:
            self._lines[tenant] = deque()
            self._push(tenant)
        self._lines[tenant].append(entry)

    def take(self) -> Entry:
        """Take the entry whose turn it is. Raises IndexError if the queue is empty."""
        self._turn, _, tenant = heappop(self._turns)
        line = self._lines[tenant]
        entry = line.popleft()
        if line:
            self._push(tenant)
        else:
            del self._lines[tenant]
        return entry

    def drop(self, is_gone: Callable[[Entry], bool]) -> list[Entry]:
        """Remove and return all entries for which the predicate is true."""
        dropped = [entry for entry in self if is_gone(entry)]
        if dropped:
            kept = {t: deque(e for e in line if not is_gone(e)) for t, line in self._lines.items()}
            self._lines = {tenant: line for tenant, line in kept.items() if line}
            self._turns = [turn for turn in self._turns if turn[2] in self._lines]
            heapify(self._turns)
        return dropped

    def _push(self, tenant: str) -> None:
        # Of two whose turn comes together, the one that has waited longer for it.
        self._serial += 1
        heappush(self._turns, (self._turn + 1.0 / self._share_of(tenant), self._serial, tenant))
