"""The loop kills and stops at each await, and nothing of a dead process runs on."""

import asyncio
from contextvars import Context, ContextVar

import pytest

from simulation.loop import DeadlockError, Step, VirtualLoop

WHO: ContextVar[str] = ContextVar("who", default="the world")


def victim() -> Context:
    context = Context()
    context.run(WHO.set, "the victim")
    return context


async def live(told: list[str]) -> None:
    """Await everything that a process may: a sleep, a lock, tasks, a timeout, a future."""
    lock = asyncio.Lock()
    try:
        async with lock:
            await asyncio.sleep(1.0)
            told.append("slept")
        await asyncio.gather(asyncio.sleep(0), asyncio.create_task(asyncio.sleep(0.5)))
        told.append("gathered")
        async with asyncio.timeout(3):
            await asyncio.sleep(0)
        told.append("done")
    except BaseException:
        told.append("caught")
        raise
    finally:
        told.append("finally")


def run(kill_at: int) -> tuple[list[str], int]:
    """Kill the victim before a step; return what it told until then, and its steps in all."""
    told: list[str] = []
    steps = 0

    def gate(step: Step) -> bool:
        nonlocal steps
        if step.context.get(WHO) != "the victim":
            return True
        steps += 1
        return steps < kill_at

    async def main() -> list[str]:
        asyncio.get_running_loop().create_task(live(told), context=victim())
        await asyncio.sleep(10)
        return list(told)

    return VirtualLoop(gate).finish(main()), steps


def test_a_kill_at_any_await_runs_no_except_and_no_finally() -> None:
    whole, steps = run(kill_at=1000)
    assert whole == ["slept", "gathered", "done", "finally"]
    assert steps > 6
    lengths = []
    for kill_at in range(1, steps + 1):
        told, _ = run(kill_at)
        assert told == whole[: len(told)]
        assert "finally" not in told or told == whole
        lengths.append(len(told))
    assert {0, 1, 2} <= set(lengths), "it died within each of its parts"


def test_what_was_due_while_a_process_stood_still_runs_in_order_when_it_wakes() -> None:
    told: list[str] = []
    parked: list[Step] = []
    is_stopped = True

    def gate(step: Step) -> bool:
        if step.context.get(WHO) == "the victim" and is_stopped:
            parked.append(step)
            return False
        return True

    loop = VirtualLoop(gate)

    async def main() -> None:
        nonlocal is_stopped
        for at_s in (2.0, 1.0):
            loop.call_later(at_s, told.append, f"due at {at_s}", context=victim())
        await asyncio.sleep(5)
        assert not told
        is_stopped = False
        loop.resume(parked)
        await asyncio.sleep(0)

    loop.finish(main())
    assert told == ["due at 1.0", "due at 2.0"]
    assert loop.time() == 5


def test_waiting_for_nothing_is_an_error_and_a_failed_callback_is_told() -> None:
    loop = VirtualLoop()

    async def main() -> None:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        loop.finish(main())
    assert [type(error) for error in loop.errors] == [ZeroDivisionError]


def test_going_on_without_waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.loop.STEPS_AT_ONCE_MAX", 1000)

    async def main() -> None:
        await asyncio.sleep(1.0)
        for _ in range(900):
            await asyncio.sleep(0)
        await asyncio.sleep(1.0)
        for _ in range(1100):
            await asyncio.sleep(0)

    with pytest.raises(DeadlockError, match=r"it stays 2\.0 s"):
        VirtualLoop().finish(main())
