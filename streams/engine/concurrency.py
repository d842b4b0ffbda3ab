"""Concurrent tasks, none of which is left running when one fails."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
END_S_MAX = 5.0


async def brought_to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work that has to end, such as closing, whoever is cancelled meanwhile.

    A caller that is cancelled waits for it for ``END_S_MAX`` more, and is cancelled then. Work that
    cancels a task, awaits it, and passes over its cancellation would pass over the caller's, too,
    which would then go on for ever.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running], timeout=END_S_MAX)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        raise


async def wait_for_all(runs: Sequence[Awaitable[None]]) -> None:
    """Wait for all to end, then raise the first failure."""
    for result in await asyncio.gather(*runs, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def few_at_a_time(runs: Sequence[Callable[[], Awaitable[T]]], most: int) -> list[T]:
    """Return the results; if one fails, cancel the others and raise it once they have ended.

    Args:
        runs: the calls, in order.
        most: the limit of concurrent runs.
    """
    few = asyncio.Semaphore(most)

    async def run(one: Callable[[], Awaitable[T]]) -> T:
        async with few:
            return await one()

    tasks = [asyncio.ensure_future(run(one)) for one in runs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Shared(Generic[T]):
    """An answer shared by all callers that have asked since the previous question was sent.

    No answer is older than its caller's question. However many callers ask at a time, at most two
    questions exist: one in flight, and one waiting.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return an answer to a question sent after this call."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._ask_after(self._asked))
        return await asyncio.shield(self._next)

    async def _ask_after(self, asked: "asyncio.Future[T] | None") -> T:
        if asked is not None:
            await asyncio.wait([asked])
        self._asked, self._next = self._next, None
        return await self._ask()
