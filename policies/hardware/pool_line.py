"""The line of a pool: requests that wait until a replica has room for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from policies.hardware.accelerator import Accelerator
from policies.hardware.pool_fill import PoolFill
from policies.hardware.replica import Ask, Replica, find_room, least_loaded
from topics.records.placement import Path

# The time before a first token is due in which its prompt is computed at the latest, beside what it
# takes alone: others decode meanwhile. By replays of the busiest 40 s of the open trace at rate 10.
KEPT_S = 0.4
# Room comes with time as well, without an event of a replica.
RECHECK_S = 0.05

Name = TypeVar("Name")

Kind = tuple[str, float | None]
"""Variant and TPOT: who waits behind whom."""


@dataclass(frozen=True, slots=True, order=True)
class _Waiting(Generic[Name]):
    due_at: float
    order: int
    name: Name = field(compare=False)
    ask: Ask = field(compare=False)


class PoolLine(Generic[Name]):
    """Requests before a pool's replicas, the one whose first token is due first in front.

    A replica with room for a request gets it at once. Where none has, it waits while its first
    token isn't due yet: its prompt would be computed between the steps of those that decode, and
    these would miss their TPOT while it has time left. When it has none, the replica with the least
    prompts to compute gets it; so it does where others of its variant wait for a place there:
    batches would go before it else. Those of one variant and TPOT don't overtake each other. Times
    are seconds.
    """

    def __init__(self, replicas: Sequence[Replica], fill: PoolFill) -> None:
        """Take the pool's replicas, and how far they are filled."""
        self._replicas = replicas
        self._fill = fill
        self._waiting: dict[Kind, list[_Waiting[Name]]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(len(heap) for heap in self._waiting.values())

    def waiting_of(self, variant: str) -> int:
        """Return how many wait for a variant."""
        return sum(len(heap) for kind, heap in self._waiting.items() if kind[0] == variant)

    @property
    def prompt_s(self) -> float:
        """The time of the prompts that wait, on one replica, in seconds."""
        first = self._replicas[0]
        asks = (each.ask for heap in self._waiting.values() for each in heap)
        return sum(first.prefill_s(ask) for ask in asks)

    def join(self, name: Name, ask: Ask, now: float) -> None:
        """Put a request in the line; one without a TTFT starts at the next `start`."""
        self._count += 1
        left_s = 0.0 if ask.ttft_left_s is None else ask.ttft_left_s
        waiting = _Waiting(now + left_s, self._count, name, ask)
        heappush(self._waiting.setdefault((ask.variant, ask.tpot_s), []), waiting)

    def leave(self, name: Name) -> bool:
        """Take a request out of the line; False if it isn't there."""
        for kind, heap in self._waiting.items():
            left = [each for each in heap if each.name != name]
            if len(left) < len(heap):
                heapify(left)
                self._set(kind, left)
                return True
        return False

    def clear(self) -> Iterator[Name]:
        """Take all out of the line."""
        waiting = sorted(each for heap in self._waiting.values() for each in heap)
        self._waiting.clear()
        yield from (each.name for each in waiting)

    def start(self, now: float) -> Iterator[tuple[Name, int]]:
        """Yield who may start now, and on which replica; it has to begin there at once."""
        blocked: set[Kind] = set()
        while True:
            heads = [(heap[0], kind) for kind, heap in self._waiting.items() if kind not in blocked]
            if not heads:
                return
            first, kind = min(heads)
            index = self._place(first, now)
            if index is None:
                blocked.add(kind)
                continue
            heap = self._waiting[kind]
            heappop(heap)
            self._set(kind, heap)
            yield first.name, index

    def due_at(self, now: float) -> float | None:
        """Return when to look again, whatever the replicas do; None if nobody waits."""
        return now + RECHECK_S if self._waiting else None

    def _set(self, kind: Kind, heap: list[_Waiting[Name]]) -> None:
        if heap:
            self._waiting[kind] = heap
        else:
            del self._waiting[kind]

    def _place(self, waiting: _Waiting[Name], now: float) -> int | None:
        ask, left_s = waiting.ask, waiting.due_at - now
        if ask.ttft_left_s is not None:
            ask = replace(ask, ttft_left_s=left_s)
        index = find_room(self._replicas, ask, now, self._fill.limits)
        if index is not None:
            return index
        index = least_loaded(self._replicas, ask)
        if _is_overfull(self._replicas[index].accelerator, ask.variant):
            return index
        soonest_s = min(each.backlog_s + each.prefill_s(ask) for each in self._replicas)
        return None if left_s - soonest_s > KEPT_S else index


def may_wait(path: Path, tier: str, ask: Ask) -> bool:
    """Return True if a request waits for room: a direct one with a TTFT, not of tier priority."""
    return path == "direct" and tier != "priority" and ask.ttft_left_s is not None


def _is_overfull(accelerator: Accelerator, variant: str) -> bool:
    """Return True if jobs of a variant wait for a place or for memory."""
    if not accelerator.queued_of(variant):
        return False
    is_without_place = accelerator.jobs_of(variant) > accelerator.max_batch_of(variant)
    return is_without_place or accelerator.kv_free_bytes < 0
