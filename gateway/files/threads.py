"""Work on the disk beside the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

# Calls of disk and object store at once: most of their time is waiting.
THREADS = 32
P = ParamSpec("P")
T = TypeVar("T")


# Not those of the event loop, which looks up names of hosts in them: a store that does not answer
# would keep a gateway from Kafka.
_STORE = ThreadPoolExecutor(THREADS, "store")


class Closable(Protocol):
    """A holder of something, until it is closed."""

    def close(self) -> object:
        """Let go of it."""
        ...


C = TypeVar("C", bound=Closable)


def _begun(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Begin work in a thread of the store's, in the context of whoever asks."""
    job = partial(copy_context().run, work, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(_STORE, job)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work in a thread; whoever is cancelled meanwhile waits for its end.

    Otherwise the thread would write on after its process has given up what it writes to.
    """
    task = _begun(work, *args, **kwargs)
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
    task = _begun(work, *args, **kwargs)
    try:
        yield await asyncio.shield(task)
    finally:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await in_thread(task.result().close)
