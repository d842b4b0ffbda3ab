"""Clients that are turned away and come again when they are told to, against an oracle's queue."""

import heapq
import math
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gateway.exchange.turns import ENDS_S, WAIT_S_MAX, Places, WindowTurns

TIMES, SECONDS = 3.0, 30.0
EPOCH_S = 1_790_000_000.0


@dataclass
class Crowd:
    """Clients that come at three times what a pool serves, in virtual time."""

    slots: int
    service_s: float
    late_s: float = 0.05
    """How much later than told one comes, at most."""
    first_at: list[float] = field(default_factory=list)
    served_at: dict[int, float] = field(default_factory=dict)
    tries: int = 0

    @property
    def per_s(self) -> float:
        return self.slots / self.service_s

    def run(self, most: int, name: Callable[[int], bytes]) -> None:
        chance, turns, now = random.Random(1), Places(most), 0.0
        while (now := now + chance.expovariate(TIMES * self.per_s)) < SECONDS:
            self.first_at.append(now)
        coming = [(at, n) for n, at in enumerate(self.first_at)]
        free = [0.0] * self.slots
        ends: list[tuple[float, int]] = []
        while coming or ends:
            if not coming or (ends and ends[0] < coming[0]):
                at, n = heapq.heappop(ends)
                self.served_at[n] = at
                turns.leave(EPOCH_S + at)
                continue
            at, n = heapq.heappop(coming)
            self.tries += 1
            wait_s = turns.take(name(n), EPOCH_S + at)
            if wait_s:
                assert wait_s <= WAIT_S_MAX
                again = at + max(1, math.ceil(wait_s)) + chance.uniform(0.005, self.late_s)
                heapq.heappush(coming, (again, n))
            else:
                end = max(at, heapq.heappop(free)) + self.service_s
                heapq.heappush(free, end)
                heapq.heappush(ends, (end, n))

    def oracle(self) -> list[float]:
        """When each would be served by one queue that all stand in."""
        free, found = [0.0] * self.slots, []
        for at in self.first_at:
            end = max(at, heapq.heappop(free)) + self.service_s
            heapq.heappush(free, end)
            found.append(end)
        return found


@pytest.mark.parametrize(
    ("slots", "service_s", "most"), [(4, 0.2, 20), (4, 0.2, 100), (4, 0.2, 1000), (64, 0.5, 1000)]
)
def test_who_obeys_is_served_as_soon_as_in_a_queue(slots: int, service_s: float, most: int) -> None:
    crowd = Crowd(slots, service_s)
    crowd.run(most, lambda n: b"%d" % n)
    oracle = crowd.oracle()
    assert len(crowd.served_at) == len(oracle)
    assert max(crowd.served_at.values()) <= 1.05 * max(oracle)
    assert worst_ratio(crowd) <= 1.2
    assert sum(at <= SECONDS for at in crowd.served_at.values()) >= 0.95 * crowd.per_s * SECONDS
    # OpenAI's clients try three times by default.
    assert crowd.tries / len(oracle) <= 3


def worst_ratio(crowd: Crowd) -> float:
    """The time of each over that in the oracle's queue: the 99th percentile of those that wait."""
    ratios = sorted(
        (crowd.served_at[n] - at) / (end - at)
        for n, (at, end) in enumerate(zip(crowd.first_at, crowd.oracle(), strict=True))
        if end - at > 2
    )
    return ratios[int(0.99 * len(ratios))]


@pytest.mark.parametrize("late_s", [0.5, 3.0])
def test_who_comes_late_does_not_wait_for_the_whole_queue_again(late_s: float) -> None:
    crowd = Crowd(4, 0.5, late_s)
    crowd.run(40, lambda n: b"%d" % n)
    assert max(crowd.served_at.values()) <= 1.05 * max(crowd.oracle())
    assert worst_ratio(crowd) <= 1.6


def test_clients_that_all_ask_the_same_lose_no_capacity() -> None:
    crowd = Crowd(4, 0.2)
    crowd.run(100, lambda _: b"same")
    oracle = crowd.oracle()
    assert max(crowd.served_at.values()) <= 1.05 * max(oracle)
    assert sum(at <= SECONDS for at in crowd.served_at.values()) >= 0.95 * crowd.per_s * SECONDS


def test_places_are_kept_for_who_was_here_first_and_no_longer_than_they_may_be_late() -> None:
    places = Places(1)
    for n in range(20):
        assert places.take(b"%d" % n, 0.1 * n) == 0
        places.leave(0.1 * n + 0.05)
    assert places.take(b"runs", 2.0) == 0
    waits = [places.take(b"w%d" % n, 2.0) for n in range(5)]
    assert waits == sorted(waits)
    assert 0.05 < waits[0] < waits[-1] < 1
    places.leave(2.05)
    assert places.take(b"new", 2.06) > 0
    assert places.take(b"w0", 2.0 + waits[0]) == 0
    places.leave(2.5)
    # No place is kept for them any more, and who comes all the same goes first.
    assert places.take(b"other", 10.0) == 0
    assert places.take(b"w1", 10.0) > 0
    places.leave(10.1)
    assert places.take(b"another", 10.2) == 0


def test_few_who_wait_keep_nobody_out_of_a_free_place() -> None:
    places = Places(1)
    assert places.take(b"runs", 0.0) == 0
    assert places.take(b"first", 1.0) > 0
    places.leave(1.1)
    # It comes before its time, and nobody is before it.
    assert places.take(b"first", 1.2) == 0
    assert places.take(b"second", 2.0) > 0
    places.leave(2.2)
    assert places.take(b"new", 2.3) == 0


def test_a_window_is_promised_as_often_as_the_rate_fills_it() -> None:
    turns = WindowTurns()
    waits = [turns.wait_s("acme", 103.0, 0.3, 10.0) for _ in range(7)]
    assert waits == [7, 7, 7, 17, 17, 17, 27]
    assert turns.wait_s("other", 103.0, 0.3, 10.0) == 7
    # Windows that have passed are promised to nobody.
    assert turns.wait_s("acme", 141.0, 0.3, 10.0) == 9
    slow = [turns.wait_s("slow", 0.0, 0.1, 10.0) for _ in range(9)]
    assert max(slow) <= WAIT_S_MAX


def test_a_gateway_that_is_never_full_remembers_no_more_than_the_last_seconds() -> None:
    places, per_s = Places(10), 100
    tracemalloc.start()
    try:
        for n in range(int(20 * ENDS_S * per_s)):
            at = EPOCH_S + n / per_s
            assert places.take(b"someone", at) == 0.0
            places.leave(at)
            if n == int(2 * ENDS_S * per_s):
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * per_s * ENDS_S
    assert places.per_s(at) == pytest.approx(per_s, rel=0.01)
