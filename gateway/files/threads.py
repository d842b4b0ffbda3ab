"""Work on the disk beside the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Closable(Protocol):
    """A holder of something, until it is closed."""

    def close(self) -> object:
        """Let go of it."""
        ...


C = TypeVar("C", bound=Closable)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work in a thread; whoever is cancelled meanwhile waits for its end.

    Otherwise the thread would write on after its process has given up what it writes to.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@asynccontextmanager
async def opened_in_thread(
    work: Callable[P, C], *args: P.args, **kwargs: P.kwargs
) -> AsyncIterator[C]:
    """Open something in a thread, and close it in one at the end of the block.

    Whoever is cancelled while it is being opened closes it too: the thread goes on.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        yield await asyncio.shield(task)
    finally:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await in_thread(task.result().close)
