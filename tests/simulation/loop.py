"""An event loop on a virtual clock: nothing waits, and the same program runs the same way.

Between two steps of any task the ``gate`` decides what becomes of the next one. So a simulated
process can be killed or stopped at each of its awaits, as by the kernel: what is refused at the
gate doesn't run, no ``except`` and no ``finally`` of it either.
"""

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

TASKS_KEPT = 256


# A run takes fewer in all.
STEPS_AT_ONCE_MAX = 100_000


class DeadlockError(Exception):
    """Every task waits for something that no timer will bring, or none waits for anything."""


class Step:
    """Something that is to run: the next step of a task, as a rule."""

    __slots__ = ("args", "callback", "context", "is_cancelled")

    def __init__(
        self, callback: Callable[..., object], args: tuple[object, ...], context: Context | None
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = copy_context() if context is None else context
        self.is_cancelled = False

    def cancel(self) -> None:
        """Let it not run."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Tell whether it will not run."""
        return self.is_cancelled


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set doesn't depend on its address in memory."""

    def __init__(self, serial: int, *args: Any, **options: Any) -> None:
        self._serial = serial
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._serial


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs steps in the order in which they became ready; ``time`` begins at 0.

    Args:
        gate: asked before each step; False keeps it from running.
    """

    def __init__(self, gate: Callable[[Step], bool] = lambda _step: True) -> None:
        self.at_s = 0.0
        self.errors: list[Exception] = []
        """What callbacks raised; a real loop would only log it."""
        self._gate = gate
        self._ready: deque[Step] = deque()
        self._timers: list[tuple[float, int, Step]] = []
        self._timers_made = 0
        self._steps_at_once = 0
        self._tasks: list[SimTask] = []
        self._tasks_made = 0
        self._is_closed = False

    def finish(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; whatever else still runs is let go."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._run_next()
            return task.result()
        finally:
            self._is_closed = True
            for left in self._tasks:
                self._drop(left)
            asyncio._set_running_loop(None)

    def resume(self, steps: Iterable[Step]) -> None:
        """Let steps run after all that the gate has refused before."""
        self._ready.extend(steps)

    def time(self) -> float:
        return self.at_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Step:
        step = Step(callback, args, context)
        self._ready.append(step)
        return step

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Step:
        return self.call_at(self.at_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Step:
        step = Step(callback, args, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, step))
        return step

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> SimTask:
        self._tasks_made += 1
        task = SimTask(self._tasks_made, coro, loop=self, name=name, context=context)
        if len(self._tasks) > TASKS_KEPT:
            self._tasks = [t for t in self._tasks if not t.done()]
        self._tasks.append(task)
        return task

    def is_running(self) -> bool:
        return not self._is_closed

    def is_closed(self) -> bool:
        return self._is_closed

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tasks of killed processes end with whatever they like, or never."""

    def _run_next(self) -> None:
        if not self._ready:
            if not self._timers:
                raise DeadlockError("no task can go on, and no timer is set")
            self.at_s = max(self.at_s, self._timers[0][0])
            self._steps_at_once = 0
        self._steps_at_once += 1
        if self._steps_at_once > STEPS_AT_ONCE_MAX:
            raise DeadlockError(f"tasks run on and on, and it stays {self.at_s} s")
        while self._timers and self._timers[0][0] <= self.at_s:
            self._ready.append(heapq.heappop(self._timers)[2])
        step = self._ready.popleft()
        if step.is_cancelled or not self._gate(step):
            return
        try:
            step.context.run(step.callback, *step.args)
        except Exception as error:  # noqa: BLE001 - as any loop does
            self.errors.append(error)

    @staticmethod
    def _drop(task: SimTask) -> None:
        coro = task.get_coro()
        if task.done() or coro is None:
            return
        with contextlib.suppress(Exception):
            coro.close()  # type: ignore[union-attr]
