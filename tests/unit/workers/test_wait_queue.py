"""The wait queue of a worker: tenants take turns, by their shares."""

from collections import Counter

import pytest

from workers.stage.wait_queue import WaitQueue

SHARES = {"large": 2.0}


@pytest.fixture
def waiting() -> WaitQueue[str]:
    return WaitQueue(lambda tenant: SHARES.get(tenant, 1.0))


def add(waiting: WaitQueue[str], tenant: str, *entries: str) -> None:
    for entry in entries:
        waiting.add(tenant, entry)


def taken(waiting: WaitQueue[str]) -> list[str]:
    found = []
    while waiting:
        found.append(waiting.take())
    return found


def test_one_tenant_alone_is_first_in_first_out(waiting: WaitQueue[str]) -> None:
    add(waiting, "a", *"123")
    assert len(waiting) == 3
    assert taken(waiting) == ["1", "2", "3"]
    assert len(waiting) == 0
    with pytest.raises(IndexError):
        waiting.take()


def test_whoever_comes_after_a_thousand_of_another_has_the_next_turn_but_one(
    waiting: WaitQueue[str],
) -> None:
    add(waiting, "noisy", *(f"n{n}" for n in range(1000)))
    assert [waiting.take() for _ in range(3)] == ["n0", "n1", "n2"]
    add(waiting, "quiet", "q0", "q1")
    assert [waiting.take() for _ in range(5)] == ["n3", "q0", "n4", "q1", "n5"]


def test_one_that_always_comes_again_leaves_another_its_turns(waiting: WaitQueue[str]) -> None:
    add(waiting, "noisy", *(f"n{n}" for n in range(100)))
    found = ""
    for n in range(100):
        if n % 2 == 0:
            add(waiting, "quiet", "q")
        found += waiting.take()[0]
    assert found.count("n") == 50


def test_twice_the_share_has_twice_the_turns(waiting: WaitQueue[str]) -> None:
    for tenant in ("small", "large"):
        add(waiting, tenant, *([tenant] * 100))
    assert Counter(waiting.take() for _ in range(90)) == {"large": 60, "small": 30}


def test_what_is_dropped_has_no_turn(waiting: WaitQueue[str]) -> None:
    add(waiting, "a", *"123")
    add(waiting, "b", *"45")
    assert waiting.drop(lambda entry: entry in "245") == ["2", "4", "5"]
    assert waiting.drop(lambda entry: entry == "9") == []
    assert (len(waiting), list(waiting)) == (2, ["1", "3"])
    add(waiting, "b", "6")
    assert sorted(taken(waiting)) == ["1", "3", "6"]


def test_tenants_that_are_gone_take_no_memory(waiting: WaitQueue[str]) -> None:
    add(waiting, "noisy", "1")
    for n in range(1000):
        add(waiting, f"t{n}", "x")
        waiting.take()
    assert len(waiting._lines) == len(waiting._turns) == 1
