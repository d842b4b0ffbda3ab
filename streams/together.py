"""Several things at a time, none of which is left behind when one fails."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def wait_for_all(runs: Sequence[Awaitable[None]]) -> None:
    """Wait for all to end before the first failure among them is raised."""
    for result in await asyncio.gather(*runs, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def few_at_a_time(runs: Sequence[Callable[[], Awaitable[T]]], most: int) -> list[T]:
    """Return what they return; one that fails ends the others, and is raised when they have ended.

    Args:
        runs: what to do, in order.
        most: how many of them at a time.
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
