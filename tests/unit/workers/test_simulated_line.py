"""The line of the simulated backend, on a clock of its own: who waits there, and until when."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from simulated_cases import OPTION, make_call
from virtual_backend import (
    JITTER_S,
    PREFILL_S,
    SLOW,
    START,
    STEP_S,
    TTFT_S,
    WATCHED_S,
    LoopClock,
    Span,
    begun,
    chat,
    in_a_backtest,
    on_virtual_time,
)

from policies.hardware.chunks import SHORT_CHUNK_TOKENS
from policies.hardware.pool_line import KEPT_S, RECHECK_S
from policies.learning.device_constants import Measured
from topics import Profile
from workers.backends.base import Call, Outcome
from workers.backends.simulated.backend import LOOK_S_MIN, SimulatedBackend


def alone(tokens: int = 100_000, pace: float = 1.0) -> Call:
    """Return a call that starts at once, and whose TPOT allows no company."""
    return chat("alone", tokens, ttft_s=None, tpot_s=STEP_S / pace)


def told(backend: SimulatedBackend) -> tuple[int, int]:
    status = backend.load().variants[OPTION.variant]
    return status.running, status.queued


async def busy(backend: SimulatedBackend, tokens: int = 100_000) -> asyncio.Task[Outcome]:
    """Let the only replica decode what has to be alone."""
    (task,) = begun(backend, alone(tokens))
    await asyncio.sleep(0.05)
    assert told(backend) == (1, 0)
    return task


def test_a_call_waits_until_its_first_token_is_nearly_due() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        call = chat("c")
        outcome = await backend.execute(call)
        waited_s = outcome.started_at - call.profile.created_at
        latest_s = TTFT_S - KEPT_S - PREFILL_S
        assert latest_s - JITTER_S <= waited_s <= latest_s + RECHECK_S + STEP_S
        assert outcome.first_token_at is not None
        assert outcome.first_token_at <= call.profile.created_at + TTFT_S

    on_virtual_time(scenario)


def test_a_call_begins_when_there_is_room_and_sooner_than_another_that_is_due_later() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        first = await busy(backend, tokens=100)
        calls = [chat("later", 500, tpot_s=STEP_S), chat("c", 500, tpot_s=STEP_S)]
        calls[1] = replace(calls[1], profile=replace(calls[1].profile, ttft_s=0.9 * TTFT_S))
        later, soon = await asyncio.gather(*begun(backend, *calls))
        ended_at = (await first).finished_at
        assert soon.started_at == pytest.approx(ended_at, abs=JITTER_S)
        assert ended_at < calls[1].profile.created_at + 0.5 * TTFT_S
        assert later.started_at > soon.started_at + 10 * STEP_S

    on_virtual_time(scenario)


@pytest.mark.parametrize("time_scale", [1.0, 4.0])
def test_a_call_with_a_long_prompt_gives_way_until_its_deadline_needs_it(
    monkeypatch: pytest.MonkeyPatch, time_scale: float
) -> None:
    monkeypatch.setattr("policies.hardware.pool_line.GIVE_WAY_SHARE", 1.0)
    answer_s = 9.0

    async def scenario(backend: SimulatedBackend) -> None:
        begun(backend, alone(pace=time_scale))
        await asyncio.sleep(0.05)
        call = make_call(id="long", hints={"input_tokens": 20_000, "output_tokens": 20})
        now = LoopClock().now()
        profile = replace(call.profile, created_at=now, deadline=now + answer_s)
        call = replace(call, profile=replace(profile, ttft_s=6.0, tpot_s=None))
        long, _ = await asyncio.gather(*begun(backend, call, chat("c", ttft_s=1.0)))
        prompt_s = (KEPT_S + SLOW.roofline.prefill_s(20_000)) / time_scale
        late_s = long.started_at - (now + answer_s - prompt_s)
        assert -JITTER_S <= late_s <= (RECHECK_S + STEP_S) / time_scale

    on_virtual_time(scenario, time_scale=time_scale)


def test_calls_without_a_ttft_batches_and_tier_priority_wait_for_no_room() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        member = chat("member")
        member = replace(member, placement=replace(member.placement, path="batch", batch_id="b"))
        paid = chat("paid")
        paid = replace(paid, profile=replace(paid.profile, tier="priority"))
        for call in (chat("any", ttft_s=None), member, paid):
            now = LoopClock().now()
            (outcome,) = await asyncio.gather(*begun(backend, call))
            assert outcome.started_at - now <= 2 * STEP_S

    on_virtual_time(scenario)


def test_the_load_has_the_line() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        begun(backend, chat("a"), chat("b"))
        await asyncio.sleep(0)
        load = backend.load()
        assert told(backend) == (1, 2)
        assert load.backlog_s == pytest.approx(2 * PREFILL_S)
        await asyncio.sleep(TTFT_S + 20 * STEP_S)
        assert told(backend) == (1, 0)
        assert backend.load().backlog_s == 0.0

    on_virtual_time(scenario)


def test_the_backlog_of_the_line_is_that_of_one_replica_in_wall_time() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        for taken in range(2):
            assert backend.load().idle_replicas == 2 - taken
            begun(backend, alone(pace=10.0))
            await asyncio.sleep(0.01)
        begun(backend, chat("a"))
        await asyncio.sleep(0)
        assert told(backend) == (2, 1)
        assert backend.load().idle_replicas == 0
        assert backend.load().backlog_s == pytest.approx(PREFILL_S / 2 / 10)

    on_virtual_time(scenario, replicas=2, time_scale=10.0)


def test_a_call_that_is_cancelled_in_line_used_nothing_and_never_begins() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        call, other = chat("c"), chat("other")
        task, next_one = begun(backend, call, other)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told(backend) == (1, 1)
        assert (call.meter.device_s, call.meter.input_tokens) == (0.0, 0)
        await next_one
        assert told(backend) == (1, 0)

    on_virtual_time(scenario)


def test_a_stop_cancels_what_waits_in_line() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        tasks = begun(backend, chat("a"), chat("b"))
        await asyncio.sleep(0.1)
        await backend.stop()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert told(backend)[1] == 0

    on_virtual_time(scenario)


def test_a_defect_of_the_devices_fails_what_waits_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        (task,) = begun(backend, chat("a"))
        await asyncio.sleep(0.1)
        monkeypatch.setattr("policies.hardware.replica.Replica.advance", broken)
        with pytest.raises(ZeroDivisionError):
            await task
        assert told(backend)[1] == 0

    on_virtual_time(scenario)


def test_what_is_measured_of_a_call_leaves_its_wait_in_the_line_out() -> None:
    measured: list[Measured] = []

    async def scenario(backend: SimulatedBackend) -> None:
        backend._pace.learn = lambda *args: measured.append(args[2])  # type: ignore[method-assign]
        await busy(backend)
        outcome = await backend.execute(chat("c"))
        assert outcome.first_token_at is not None
        (took,) = measured
        latency_s = SLOW.latency_s
        first_s = latency_s + outcome.first_token_at - outcome.started_at
        assert took.first_s == pytest.approx(first_s, abs=STEP_S)
        total_s = latency_s + outcome.finished_at - outcome.started_at
        assert took.total_s == pytest.approx(total_s, abs=STEP_S)
        assert took.sequences == 2

    on_virtual_time(scenario)


@pytest.mark.parametrize("time_scale", [1.0, 4.0])
@pytest.mark.parametrize("by_due", [True, False])
def test_what_is_due_first_is_computed_first_where_chunks_are_within_the_tpot(
    by_due: bool, time_scale: float
) -> None:
    measured: list[Measured] = []

    async def scenario(backend: SimulatedBackend) -> None:
        backend._pace.learn = lambda *args: measured.append(args[2])  # type: ignore[method-assign]
        call = make_call(id="long", hints={"input_tokens": 20_000, "output_tokens": 1})
        profile = replace(chat("long").profile, prompts=1, ttft_s=1.0)
        long = replace(call, profile=replace(profile, input_tokens=20_000, output_tokens=1))
        tasks = begun(backend, long)
        # The second comes later, by more than it is due sooner in seconds of the model.
        await asyncio.sleep(0.02)
        tasks += begun(backend, chat("soon", 1, ttft_s=0.97))
        first_at, second_at = (outcome.finished_at for outcome in await asyncio.gather(*tasks))
        assert (second_at < first_at) is by_due

    on_virtual_time(scenario, time_scale=time_scale, keeps_tpot=by_due)
    ahead_s = sorted(took.ahead_s for took in measured)
    assert ahead_s == pytest.approx([0.0, 0.0 if by_due else SLOW.roofline.prefill_s(20_000)])


def test_what_begins_together_knows_what_began_before_it() -> None:
    """Else all of a line would go to the replica that has room for one of them."""

    async def scenario(backend: SimulatedBackend) -> None:
        tasks = begun(backend, *(alone(60) for _ in range(2)))
        await asyncio.sleep(0.05)
        waiting = [chat(str(n), 20, tpot_s=STEP_S) for n in range(2)]
        tasks += begun(backend, *waiting)
        first, second, third, fourth = await asyncio.gather(*tasks)
        assert first.finished_at == pytest.approx(second.finished_at, abs=JITTER_S)
        assert third.started_at == pytest.approx(fourth.started_at, abs=JITTER_S)
        assert third.finished_at == pytest.approx(fourth.finished_at, abs=JITTER_S)
        assert third.device_s == pytest.approx(PREFILL_S + SLOW.roofline.decode_s(20, 1, 500))

    on_virtual_time(scenario, replicas=2)


def test_a_fast_pool_does_not_look_at_its_line_all_the_time() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        looked, start = [], backend._line.start

        def counted(now: float) -> Any:
            looked.append(now)
            return start(now)

        backend._line.start = counted  # type: ignore[method-assign]
        begun(backend, alone(pace=100.0))
        await asyncio.sleep(0.01)
        begun(backend, chat("c"))
        await asyncio.sleep(WATCHED_S)
        assert told(backend) == (1, 1)
        often = WATCHED_S / LOOK_S_MIN
        assert 0.9 * often < len(looked) < 1.1 * often

    on_virtual_time(scenario, time_scale=100.0)


def tpot_beside_prompts(tpot_s: float, pace: float, *, keeps: bool) -> float:
    """Return the TPOT of a short reply after whose first token prompts come."""
    steps = 5
    hints = {"input_tokens": 2_000, "output_tokens": 1}
    found: list[float] = []

    async def scenario(backend: SimulatedBackend) -> None:
        (reply,) = begun(backend, chat("reply", 1 + steps, tpot_s=tpot_s))
        await asyncio.sleep(1.01 * PREFILL_S / pace)
        prompts = [make_call("batch", id=str(n), hints=hints) for n in range(5)]
        await asyncio.gather(*begun(backend, *prompts))
        outcome = await reply
        assert outcome.first_token_at is not None
        found.append((outcome.finished_at - outcome.first_token_at) / steps)

    on_virtual_time(scenario, time_scale=pace, latency_s=0.0, keeps_tpot=keeps)
    return found[0]


def test_a_short_reply_keeps_its_tpot_beside_prompts_where_chunks_are_within_it() -> None:
    pace = 4.0
    tpot_s = 1.1 * SLOW.roofline.step_s(1, 600, prefill_tokens=SHORT_CHUNK_TOKENS) / pace
    assert tpot_beside_prompts(tpot_s, pace, keeps=True) <= tpot_s + JITTER_S
    whole_tpot_s = tpot_beside_prompts(tpot_s, pace, keeps=False)
    assert whole_tpot_s > 1.5 * tpot_s
    enough_s = 2 * SLOW.roofline.step_s(1, 600, prefill_tokens=2_048) / pace
    found_s = tpot_beside_prompts(enough_s, pace, keeps=True)
    assert found_s == pytest.approx(whole_tpot_s, abs=JITTER_S)


def test_a_streamed_call_tells_its_pieces_after_its_wait() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        await busy(backend)
        pieces: list[float] = []

        async def tell(_: dict[str, Any]) -> None:
            pieces.append(LoopClock().now())

        call = replace(chat("c", 200), tell=tell)
        outcome = await backend.execute(call)
        assert outcome.first_token_at is not None
        assert pieces[0] == pytest.approx(outcome.first_token_at, abs=STEP_S)
        assert pieces[0] > call.profile.created_at + TTFT_S - KEPT_S - PREFILL_S
        assert len(pieces) > 2

    on_virtual_time(scenario)


@pytest.mark.parametrize("seed", range(4))
def test_the_line_is_that_of_the_backtest(seed: int) -> None:
    draw = random.Random(seed)
    arrivals = [
        (0.03 * n + 0.02 * draw.random(), draw.choice((20, 60, 200)), draw.choice((None, 1.2, 3.0)))
        for n in range(60)
    ]
    found: dict[int, Span] = {}
    profiles: list[Profile] = []

    async def scenario(backend: SimulatedBackend) -> None:
        async def one(number: int, at_s: float, tokens: int, steps: float | None) -> None:
            await asyncio.sleep(at_s)
            tpot_s = None if steps is None else steps * STEP_S
            call = chat(str(number), tokens, tpot_s=tpot_s)
            profiles.append(replace(call.profile, created_at=at_s))
            outcome = await backend.execute(call)
            found[number] = outcome.started_at - START, outcome.finished_at - START

        await asyncio.gather(*(one(number, *each) for number, each in enumerate(arrivals)))

    on_virtual_time(scenario, replicas=2, latency_s=0.0)
    expected, waited, _ = in_a_backtest(replace(SLOW, replicas=2, latency_s=0.0), profiles)
    assert waited > 3
    assert set(found) == set(expected) == set(range(len(arrivals)))
    for number, span in expected.items():
        assert found[number] == pytest.approx(span, abs=JITTER_S), number
