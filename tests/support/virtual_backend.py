"""The simulated backend on a clock of its own, and a modelled pool to compare it with."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from simulated_cases import OPTION, make_call
from simulation.loop import VirtualLoop

from policies import Option
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replica_pool import ModelPool, Try
from topics import Profile
from workers.backends.base import Call, Outcome
from workers.backends.simulated.backend import SimulatedBackend

SLOW = replace(OPTION, time_scale=1.0)
STEP_S = SLOW.roofline.step_s(1, 500)
PREFILL_S = SLOW.roofline.prefill_s(500)
TTFT_S = 1.5
START = 1_800_000_000.0
WATCHED_S = 0.2
# Epoch seconds as floats are exact to a quarter of a microsecond.
JITTER_S = 1e-5


class LoopClock:
    """Epoch seconds of a virtual loop."""

    def now(self) -> float:
        return START + asyncio.get_running_loop().time()


def chat(name: str, tokens: int = 20, **slo: float | None) -> Call:
    """Return a call made now: 500 tokens, a TTFT, no TPOT."""
    call = make_call(id=name, hints={"input_tokens": 500, "output_tokens": tokens})
    profile = replace(call.profile, created_at=LoopClock().now(), ttft_s=TTFT_S, tpot_s=None)
    return replace(call, profile=replace(profile, **slo))


def on_virtual_time(
    scenario: Callable[[SimulatedBackend], Awaitable[None]], **changes: Any
) -> None:
    async def run() -> None:
        backend = SimulatedBackend((replace(SLOW, **changes),), LoopClock())
        await backend.start()
        await scenario(backend)
        await backend.stop()

    VirtualLoop().finish(run())


def begun(backend: SimulatedBackend, *calls: Call) -> list[asyncio.Task[Outcome]]:
    return [asyncio.create_task(backend.execute(call)) for call in calls]


Span = tuple[float, float]
"""Begin and end of a request."""


def in_a_backtest(option: Option, profiles: list[Profile]) -> tuple[dict[int, Span], int, int]:
    """Return when chats of 500 tokens run in a modelled pool, and how many waited and moved."""
    pool = ModelPool([option], Reality(), random.Random(0).random)
    found: dict[int, Span] = {}
    coming, now, waited = list(enumerate(profiles)), 0.0, 0
    while coming or not pool.is_idle:
        due = [coming[0][1].created_at if coming else None, pool.look_at(now)]
        due += [pool.due_at(index) for index in range(option.replicas)]
        now = min(at for at in due if at is not None)
        for index in range(option.replicas):
            for ended in pool.advance(index, now):
                done = ended.attempt.outcome
                assert done.started_s is not None
                assert done.finished_s is not None
                found[done.row] = done.started_s, done.finished_s
        while coming and coming[0][1].created_at <= now:
            row, profile = coming.pop(0)
            outcome = ReplayOutcome(row, profile, 500, profile.output_tokens)
            pool.submit(Try(outcome, option, "direct", None), now)
        pool.migrate(now)
        list(pool.start(now))
        waited = max(waited, pool.status(now).queued)
    return found, waited, pool.migrations
