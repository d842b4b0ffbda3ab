"""Runs of a backtest side by side, one on each core."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from shunter.backtest.suite import PlannedRun, Scored, ScoredRun

Given = TypeVar("Given")

# Set in a process that works for another.
_adopted: Any = None


def whole_runs(plans: Sequence[PlannedRun]) -> Iterator[tuple[ScoredRun, float]]:
    """Yield each run, and the seconds that it took, one after the other."""
    calm_garbage_collector()
    for plan in plans:
        began = time.monotonic()
        yield plan.run(), time.monotonic() - began


def scored_beside(plans: Sequence[PlannedRun], ours: int) -> Iterator[tuple[Scored, float]]:
    """Yield each run in the order of the plans, and the seconds that it took.

    The first ``ours`` are made here, so that their outcomes are at hand; of the others only the
    figures come back, from as many processes as there are cores. Those are forked, and have the
    trace without a copy. Runs share nothing that changes: their results don't depend on where they
    are made.

    Raises:
        UserError: the trace names what the policy doesn't have.
    """
    beside = len(plans) - ours
    if not beside or not can_fork():
        yield from whole_runs(plans)
        return
    with forked(min(cores(), beside), adopt, plans) as processes:
        found = [processes.submit(_run, number) for number in range(ours, len(plans))]
        yield from whole_runs(plans[:ours])
        for each in found:
            yield each.result()


@contextmanager
def forked(
    count: int, adopt: Callable[[Given], object], given: Given
) -> Iterator[ProcessPoolExecutor]:
    """Give so many processes, each of which has adopted what is given without a copy.

    Ctrl-C, which a terminal sends to each of them, ends them without a word: else each tells where
    it was, and goes on with the next piece of work. It waits until all are there, as one that came
    while a process is forked is lost in it.
    """
    calm_garbage_collector()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        count,
        multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(adopt, given),
    ) as processes:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # With the first piece of work all are forked.
            processes.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield processes
        except BaseException:
            # The others would finish what they have, where Ctrl-C came to this process alone, too.
            for each in set(multiprocessing.active_children()) - others:
                each.kill()
            raise


def adopt(given: object) -> None:
    """Keep what this process was given for `adopted`."""
    global _adopted  # noqa: PLW0603 - the one that a process is forked with
    _adopted = given


def adopted() -> Any:
    """Return what this process was given.

    Raises:
        RuntimeError: it is not one that `forked` gave with `adopt`.
    """
    if _adopted is None:
        raise RuntimeError("not a process of `forked`")
    return _adopted


def _begin(adopt: Callable[[Given], object], given: Given) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    adopt(given)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    """End this process with the one that it works for, which may be killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def calm_garbage_collector() -> None:
    """Collect garbage less often, and never what is there already.

    A run keeps its outcomes, and makes no cycles: collections find nothing, and took a tenth of it.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _run(number: int) -> tuple[Scored, float]:
    began = time.monotonic()
    plans: Sequence[PlannedRun] = adopted()
    found = plans[number].run()
    return Scored(found.name, found.scores), time.monotonic() - began


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def can_fork() -> bool:
    """Return True where a fork is safe and of use: a second core, and no second thread."""
    return hasattr(os, "sched_getaffinity") and cores() > 1 and threading.active_count() == 1
