"""The simulated backend lets replies migrate, as the backtest does: on a clock of its own."""

import asyncio
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from virtual_backend import (
    JITTER_S,
    SLOW,
    START,
    STEP_S,
    Span,
    begun,
    chat,
    in_a_backtest,
    on_virtual_time,
)

from policies import Option
from policies.hardware.iteration import Job
from policies.learning.device_constants import Measured
from policies.learning.device_speed import Pace
from topics import Profile
from workers.backends.simulated.backend import SimulatedBackend

# So few places that chats come to run apart, and find room in company when others have ended.
MOVING: dict[str, Any] = {"replicas": 2, "max_batch": 5, "latency_s": 0.0, "migrates": True}


def running(backend: SimulatedBackend) -> list[int]:
    return [each.accelerator.running for each in backend._replicas]


def moved(backend: SimulatedBackend) -> int:
    """What the worker's metric tells."""
    found = backend.load().migrations
    assert found is not None
    return found


def test_a_streamed_reply_goes_on_at_another_replica_without_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[tuple[Job, Measured]] = []

    def learn(_: Pace, __: Option, job: Job, took: Measured, ___: float) -> None:
        learned.append((job, took))

    monkeypatch.setattr(Pace, "learn", learn)

    async def scenario(backend: SimulatedBackend) -> None:
        told: list[tuple[float, str]] = []

        async def tell(piece: dict[str, Any]) -> None:
            text = piece["choices"][0]["delta"]["content"]
            told.append((asyncio.get_running_loop().time(), text))

        begun(backend, *(chat(f"long{n}", 4_000) for n in range(3)))
        begun(backend, *(chat(f"short{n}", 400) for n in range(2)))
        (task,) = begun(backend, replace(chat("c", 800), tell=tell))
        await asyncio.sleep(0.15)
        assert sum(running(backend)) == 6
        assert min(running(backend)) == 1
        outcome = await task
        assert moved(backend) == 1
        reply = outcome.response.body["choices"][0]["message"]["content"]
        assert "".join(text for _, text in told) == reply
        assert len(reply.split()) == 800
        times = [at for at, _ in told]
        assert max(b - a for a, b in pairwise(times)) < 0.15
        assert outcome.device_s > 799 * STEP_S / 6
        assert outcome.usage.output_tokens == 800
        # Alone for half of its tokens, and one of four for the others.
        assert [took.sequences for job, took in learned if job.output_tokens == 800] == [2]

    on_virtual_time(scenario, **MOVING)


@pytest.mark.parametrize("seed", range(4))
def test_replies_migrate_as_in_the_backtest(seed: int) -> None:
    draw = random.Random(seed)
    arrivals = [
        (0.03 * n + 0.02 * draw.random(), draw.choice((20, 60, 400)), draw.choice((None, 3.0)))
        for n in range(60)
    ]
    found: dict[int, Span] = {}
    profiles: list[Profile] = []
    moves: list[int] = []

    async def scenario(backend: SimulatedBackend) -> None:
        async def one(number: int, at_s: float, tokens: int, steps: float | None) -> None:
            await asyncio.sleep(at_s)
            call = chat(str(number), tokens, tpot_s=None if steps is None else steps * STEP_S)
            profiles.append(replace(call.profile, created_at=at_s))
            outcome = await backend.execute(call)
            found[number] = outcome.started_at - START, outcome.finished_at - START

        await asyncio.gather(*(one(number, *each) for number, each in enumerate(arrivals)))
        moves.append(moved(backend))

    changes = MOVING | {"replicas": 3}
    on_virtual_time(scenario, **changes)
    expected, _, there = in_a_backtest(replace(SLOW, **changes), profiles)
    assert moves == [there]
    assert there > 2
    for number, span in expected.items():
        assert found[number] == pytest.approx(span, abs=JITTER_S), number


def test_a_call_that_is_cancelled_on_its_way_is_metered_and_leaves_nothing() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        metered = 0.0
        for number in range(60):
            calls = [chat(f"{number}-{n}", 3_000) for n in range(7)]
            tasks = begun(backend, *calls)
            await asyncio.sleep(0.15)
            for task in tasks[:3]:
                task.cancel()
            await asyncio.sleep(0.0007 * number)
            for task in tasks[3:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            metered += sum(call.meter.device_s for call in calls)
        await asyncio.sleep(1.0)
        assert moved(backend) > 5
        assert running(backend) == [0, 0, 0]
        assert not backend._runs
        busy_s = sum(each.accelerator.busy_s for each in backend._replicas)
        assert metered == pytest.approx(busy_s, rel=1e-6)
        assert all(each.accelerator.kv_usage == 0.0 for each in backend._replicas)

    on_virtual_time(scenario, **(MOVING | {"replicas": 3}))


def test_a_call_that_is_cancelled_when_it_has_left_unseen_leaves_nothing() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        begun(backend, *(chat(f"long{n}", 2_000) for n in range(3)))
        begun(backend, *(chat(f"short{n}", 60) for n in range(2)))
        call = chat("c", 2_000)
        (task,) = begun(backend, call)
        migration = backend._migration
        assert migration is not None
        for _ in range(1_000):
            if migration._moves and not migration._copied:
                break
            await asyncio.sleep(0.001)
        ((name, move),) = migration._moves.items()
        # The iteration in which it leaves ends before the driver wakes.
        source = backend._replicas[move.source].accelerator
        source.output_tokens_of(name, backend._model_now() + 0.1)
        assert source.is_idle
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert call.meter.device_s > 0.0
        assert call.meter.output_tokens > 0
        assert sum(running(backend)) == 3
        assert not migration._moves

    on_virtual_time(scenario, **MOVING)
