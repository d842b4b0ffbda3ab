"""An event loop on a virtual clock: nothing waits, and the same program runs the same way."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(Exception):
    """Every task waits for something that no timer will bring."""


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set doesn't depend on its address in memory."""

    def __init__(self, serial: int, *args: Any, **options: Any) -> None:
        self._serial = serial
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._serial


class _Jump:
    """In place of a selector: instead of waiting, the clock is put forward."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> Sequence[object]:
        if timeout_s is None:
            raise DeadlockError("no task can go on, and no timer is set")
        self._loop.at_s += max(timeout_s, 0.0)
        return ()


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs tasks in the order in which they became ready; ``time`` begins at 0."""

    def __init__(self, on_task: Callable[[SimTask, Context | None], None]) -> None:
        super().__init__()
        self.at_s = 0.0
        self._selector = _Jump(self)
        self._on_task = on_task
        self._tasks_made = 0
        self.set_task_factory(self._make_task)
        # Tasks of killed processes end with whatever they like.
        self.set_exception_handler(lambda _loop, _context: None)

    def time(self) -> float:
        return self.at_s

    def finish(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, then stop whatever else still runs."""
        try:
            return self.run_until_complete(main)
        finally:
            left = sorted(asyncio.all_tasks(self), key=hash)
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.run_until_complete(self.shutdown_asyncgens())
            self.close()

    def _make_task(
        self,
        _loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        context: Context | None = None,
    ) -> SimTask:
        self._tasks_made += 1
        task = SimTask(self._tasks_made, coro, loop=self, context=context)
        self._on_task(task, context)
        return task

    def _process_events(self, _events: Sequence[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else runs."""
