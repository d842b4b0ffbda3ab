"""The line of a pool: requests that wait until a replica has room for them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from policies.hardware.accelerator import Accelerator
from policies.hardware.pool_fill import PoolFill
from policies.hardware.replica import Ask, Replica
from policies.hardware.replica_choice import choose_replica, find_room, least_loaded
from policies.hardware.variant_homes import VariantHomes
from topics.records.placement import Path

# The time before a first token is due in which its prompt is computed at the latest, beside what it
# takes alone: others decode meanwhile. By replays of the open trace at rate 10 with 0.4 to 1.3 s.
KEPT_S = 0.8
# By how many times the prompt of one that gives way takes longer than that of the one which has no
# time left. By replays of the whole trace with 3, 5, 6, 8 and 15.
GIVES_WAY = 5.0
# Of the prompts of a length, within a power of two, the share that may give way: else one class
# would pay for all. By replays of the same trace with 0.02 to 0.04 and without.
GIVE_WAY_SHARE = 0.03
# Room comes with time as well, without an event of a replica.
RECHECK_S = 0.05

Name = TypeVar("Name")

Kind = tuple[bool, str, float | None]
"""Whether they gave way, variant and TPOT: who waits behind whom."""


@dataclass(frozen=True, slots=True, order=True)
class _Waiting(Generic[Name]):
    """A request, when its first token is due, and when it is if only the deadline counts."""

    due_at: float
    order: int
    name: Name = field(compare=False)
    ask: Ask = field(compare=False)
    late_at: float = field(compare=False)
    gave_way: bool = field(default=False, compare=False)

    @property
    def kind(self) -> Kind:
        return (self.gave_way, self.ask.variant, self.ask.tpot_s)


class PoolLine(Generic[Name]):
    """Requests before a pool's replicas, the one whose first token is due first in front.

    A replica with room for a request gets it at once. Where none has, it waits while its first
    token isn't due yet: its prompt would be computed between the steps of those that decode, and
    these would miss their TPOT while it has time left. When it has none, the replica with the least
    prompts to compute gets it; so it does where others of its variant wait for a place there:
    batches would go before it else. Those of one variant and TPOT don't overtake each other.

    One that starts without room is likely to miss its SLO, or to have another miss it. So where
    another waits whose prompt takes `GIVES_WAY` times as long, that gives way to it, unless many of
    its length have: its TTFT is given up, and it starts when nobody else waits, or when its
    deadline would not be met else. To have the fewest late, drop the longest whenever one would be
    (Moore 1968). Where there is none, one that would be late itself gives way: else it would only
    make others late. Times are seconds.
    """

    def __init__(self, replicas: Sequence[Replica], fill: PoolFill) -> None:
        """Take the pool's replicas, and how far they are filled."""
        self._replicas = replicas
        self._fill = fill
        self._homes = VariantHomes(replicas)
        self._waiting: dict[Kind, list[_Waiting[Name]]] = {}
        # By the bits of a prompt's tokens.
        self._joined, self._gave_way = Counter[int](), Counter[int]()
        self._count = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(len(heap) for heap in self._waiting.values())

    def waiting_of(self, variant: str) -> int:
        """Return how many wait for a variant."""
        return sum(len(heap) for kind, heap in self._waiting.items() if kind[1] == variant)

    @property
    def prompt_s(self) -> float:
        """The time of the prompts that wait, on one replica, in seconds."""
        first = self._replicas[0]
        asks = (each.ask for heap in self._waiting.values() for each in heap)
        return sum(first.prefill_s(ask) for ask in asks)

    def join(self, name: Name, ask: Ask, now: float) -> None:
        """Put a request in the line; one without a TTFT starts at the next `start`."""
        self._homes.note(ask, now)
        self._joined[ask.input_tokens.bit_length()] += 1
        self._count += 1
        left_s = 0.0 if ask.ttft_left_s is None else ask.ttft_left_s
        decode_s = ask.output_tokens * (ask.tpot_s or 0.0)
        late_at = now + ask.answer_left_s - decode_s
        self._push(_Waiting(now + left_s, self._count, name, ask, late_at))

    def choose(self, ask: Ask, now: float) -> int:
        """Return the replica that serves a request which does not wait in the line."""
        if ask.ttft_left_s is not None:
            left_s = ask.ttft_left_s if ask.ttft_left_s > 0 else ask.answer_left_s
            ask = replace(ask, due_at=now + left_s)
        return choose_replica(self._replicas, ask, now, self._fill.limits, self._homes)

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
            index, is_forced = self._place(first, now)
            if index is None:
                blocked.add(kind)
                continue
            if is_forced:
                dearest = self._dearest(first.ask)
                if dearest is None and self._is_lost(first, index, now):
                    dearest = first
                if dearest is not None:
                    self._let_give_way(dearest)
                if dearest is first:
                    continue
            heap = self._waiting[kind]
            heappop(heap)
            self._set(kind, heap)
            yield first.name, index

    def due_at(self, now: float) -> float | None:
        """Return when to look again, whatever the replicas do; None if nobody waits."""
        return now + RECHECK_S if self._waiting else None

    def _push(self, waiting: _Waiting[Name]) -> None:
        heappush(self._waiting.setdefault(waiting.kind, []), waiting)

    def _set(self, kind: Kind, heap: list[_Waiting[Name]]) -> None:
        if heap:
            self._waiting[kind] = heap
        else:
            del self._waiting[kind]

    def _place(self, waiting: _Waiting[Name], now: float) -> tuple[int | None, bool]:
        """Return the replica on which one starts now, if any, and whether it lacks time alone."""
        ask, left_s = waiting.ask, waiting.due_at - now
        if ask.ttft_left_s is not None:
            ask = replace(ask, ttft_left_s=left_s, due_at=waiting.due_at)
        is_behind = waiting.gave_way and not all(kind[0] for kind in self._waiting)
        index = (
            None
            if is_behind
            else find_room(self._replicas, ask, now, self._fill.limits, self._homes)
        )
        if index is not None:
            return index, False
        index = least_loaded(self._replicas, ask, self._homes)
        if _is_overfull(self._replicas[index].accelerator, ask.variant):
            return index, False
        soonest_s = min(each.ahead_s(ask.due_at) + each.prefill_s(ask) for each in self._replicas)
        return (None, False) if left_s - soonest_s > KEPT_S else (index, True)

    def _dearest(self, ask: Ask) -> _Waiting[Name] | None:
        """Return whoever should give way to a request, the longest prompt first; None: nobody."""
        seconds = self._replicas[0].prefill_s
        able = [
            (seconds(each.ask), each.order, each)
            for heap in self._waiting.values()
            for each in heap
            if each.late_at > each.due_at and self._may_give_way(each.ask)
        ]
        longest = max(able, default=None)
        return longest[2] if longest and longest[0] >= GIVES_WAY * seconds(ask) else None

    def _may_give_way(self, ask: Ask) -> bool:
        length = ask.input_tokens.bit_length()
        return self._gave_way[length] + 1 <= GIVE_WAY_SHARE * self._joined[length]

    def _is_lost(self, waiting: _Waiting[Name], index: int, now: float) -> bool:
        """Return True if one's first token would be late on a replica, and its answer not yet."""
        if waiting.ask.ttft_left_s is None or waiting.late_at <= waiting.due_at:
            return False
        replica = self._replicas[index]
        return (
            now + replica.ahead_s(waiting.due_at) + replica.prefill_s(waiting.ask) > waiting.due_at
        )

    def _let_give_way(self, waiting: _Waiting[Name]) -> None:
        self._gave_way[waiting.ask.input_tokens.bit_length()] += 1
        self.leave(waiting.name)
        self._push(replace(waiting, due_at=waiting.late_at, gave_way=True))


def may_wait(path: Path, tier: str, ask: Ask) -> bool:
    """Return True if a request waits for room: a direct one with a TTFT, not of tier priority."""
    return path == "direct" and tier != "priority" and ask.ttft_left_s is not None


def _is_overfull(accelerator: Accelerator, variant: str) -> bool:
    """Return True if jobs of a variant wait for a place or for memory."""
    if not accelerator.queued_of(variant):
        return False
    is_without_place = accelerator.jobs_of(variant) > accelerator.max_batch_of(variant)
    return is_without_place or accelerator.kv_free_bytes < 0
