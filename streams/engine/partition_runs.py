"""Work on partitions that is under way: one run for each, some of which may be left behind.

A run whose broker answers late would else hold up all other partitions of its process
(docs/decisions/0051-nobody-waits-for-a-late-commit.md).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

from streams.engine.log import Partition, TakenOverError


class PartitionRuns:
    """The runs of a transactor's partitions, at most one of each at a time."""

    def __init__(self) -> None:
        self._runs: dict[Partition, asyncio.Task[None]] = {}
        self._late_since: float | None = None

    def __bool__(self) -> bool:
        """Return whether any is under way."""
        return bool(self._runs)

    @property
    def partitions(self) -> Collection[Partition]:
        """Those that have a run under way."""
        return self._runs.keys()

    @property
    def late_s(self) -> float:
        """For how long there has been no moment without a run, in seconds."""
        since = self._late_since
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

    async def begin(
        self,
        partitions: Iterable[Partition],
        run: Callable[[Partition], Awaitable[None]],
        most_s: float | None,
    ) -> None:
        """Run each, and wait until these have ended, ``most_s`` at most if that is not None.

        Raises:
            Exception: the first failure of what has ended, of earlier runs too.
        """
        begun = {p: asyncio.ensure_future(run(p)) for p in partitions}
        self._runs |= begun
        await self._wait(begun.values(), most_s)

    async def end(self) -> None:
        """Wait until none is under way.

        Raises:
            Exception: the first failure.
        """
        await self._wait(list(self._runs.values()), None)

    async def cancel(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        for run in self._runs.values():
            run.cancel()
        await asyncio.gather(*self._runs.values(), return_exceptions=True)
        self._runs.clear()
        self._late_since = None

    async def _wait(self, runs: Collection["asyncio.Task[None]"], most_s: float | None) -> None:
        if runs:
            await asyncio.wait(runs, timeout=most_s)
        ended = [p for p, run in self._runs.items() if run.done()]
        failures = [error for p in ended if (error := _failure(self._runs.pop(p))) is not None]
        if not self._runs:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = asyncio.get_running_loop().time()
        if failures:
            # What ends the process comes before what takes partitions over anew.
            raise min(failures, key=lambda error: isinstance(error, TakenOverError))


def _failure(run: "asyncio.Task[None]") -> BaseException | None:
    return asyncio.CancelledError() if run.cancelled() else run.exception()
