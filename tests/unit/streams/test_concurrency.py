"""Several things at a time: no more than that, in order, and none left behind."""

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial

import pytest

from streams.engine import concurrency
from streams.engine.concurrency import Shared, brought_to_its_end, few_at_a_time, wait_for_all


async def wait_long(ended: list[str]) -> None:
    """Wait for longer than a test, and take a moment to end."""
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        ended.append("waits")


async def test_no_more_run_than_that_and_results_come_in_order() -> None:
    running, most = 0, 0

    async def run(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - number))
        running -= 1
        return number

    assert await few_at_a_time([partial(run, n) for n in range(5)], 2) == [0, 1, 2, 3, 4]
    assert most == 2


async def test_one_that_fails_ends_the_others_first() -> None:
    ended: list[str] = []
    waits = partial(wait_long, ended)

    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def never_begins() -> None:
        ended.append("never")

    with pytest.raises(LookupError):
        await few_at_a_time([waits, fails, waits, never_begins], 2)
    assert set(ended) == {"waits"}


async def test_to_be_cancelled_ends_all_of_them() -> None:
    ended: list[str] = []
    waits = partial(wait_long, ended)
    both = asyncio.ensure_future(few_at_a_time([waits, waits, waits], 2))
    await asyncio.sleep(0.001)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    assert ended == ["waits", "waits"]


async def test_all_end_before_a_failure_is_raised() -> None:
    ended = []

    async def fails() -> None:
        raise LookupError

    async def takes_longer() -> None:
        await asyncio.sleep(0.001)
        ended.append(1)

    with pytest.raises(LookupError):
        await wait_for_all([fails(), takes_longer()])
    assert ended == [1]


async def test_who_asks_gets_an_answer_that_is_no_older_than_the_question() -> None:
    begun = 0
    has_begun, may_answer = asyncio.Event(), asyncio.Event()

    async def ask() -> int:
        nonlocal begun
        begun += 1
        number = begun
        has_begun.set()
        await may_answer.wait()
        return number

    shared = Shared(ask)
    first = [asyncio.create_task(shared()) for _ in range(3)]
    await has_begun.wait()
    later = [asyncio.create_task(shared()) for _ in range(3)]
    await asyncio.sleep(0)
    # One that waits no longer takes the answer from nobody.
    later.pop().cancel()
    assert begun == 1
    may_answer.set()
    assert await asyncio.gather(*first) == [1, 1, 1]
    assert await asyncio.gather(*later) == [2, 2]
    assert await shared() == 3


async def test_a_question_that_fails_fails_for_those_who_share_it_alone() -> None:
    answers: Iterator[OSError | int] = iter([OSError("gone"), 7])

    async def ask() -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    shared = Shared(ask)
    failed = await asyncio.gather(shared(), shared(), return_exceptions=True)
    assert [type(each) for each in failed] == [OSError, OSError]
    assert await shared() == 7


async def closing(ended: list[str]) -> str:
    """Close as libraries do: cancel a task, await it, and pass over its cancellation."""
    inner = asyncio.ensure_future(wait_long(ended))
    await asyncio.sleep(0)
    inner.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await inner
    ended.append("closed")
    return "closed"


async def test_what_passes_over_its_own_cancellation_loses_not_the_callers() -> None:
    assert await brought_to_its_end(closing([])) == "closed"
    for moments in range(5):
        ended: list[str] = []
        task = asyncio.ensure_future(brought_to_its_end(closing(ended)))
        for _ in range(moments + 1):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["waits", "closed"]


async def test_what_does_not_end_is_waited_for_no_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrency, "END_S_MAX", 0.01)
    ended: list[str] = []
    task = asyncio.ensure_future(brought_to_its_end(wait_long(ended)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert ended == ["waits"]


async def test_what_fails_in_it_fails() -> None:
    async def fails() -> None:
        raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        await brought_to_its_end(fails())
