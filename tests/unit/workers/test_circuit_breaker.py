"""Tries at one server: what is tried again there, how long, and when nothing is sent any more."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from openai_cases import OPTIONS, call
from stream_cases import START, FakeClock

from topics import Response, Usage
from workers.backends.base import CallError, Load, Outcome
from workers.resilience import attempts as attempts_of
from workers.resilience.attempts import AFTER_S_MAX, TRIES_HERE_MAX, Attempts, limit_s, service_s
from workers.resilience.circuit_breaker import (
    FAILURES_MAX,
    LAST_CALLS,
    PROBE_AFTER_S,
    Breaker,
    Breakers,
)

VARIANT = "small-bf16"
ANSWER = Outcome(Response(200, {}), Usage(1, 1), START, None, START, 0.0)


class Scripted:
    """A backend whose calls end as they are listed; the last one repeats."""

    def __init__(self, *ends: BaseException | float | None) -> None:
        self.ends = list(ends)
        self.calls = 0
        self.probes: list[Exception | None] = []

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    def load(self) -> Load:
        return Load(0.0, {})

    async def probe(self, variant: str) -> None:
        end = self.probes.pop(0)
        if end is not None:
            raise end

    async def execute(self, _: Any) -> Outcome:
        end = self.ends[min(self.calls, len(self.ends) - 1)]
        self.calls += 1
        if isinstance(end, BaseException):
            raise end
        await asyncio.sleep(end or 0.0)
        return ANSWER


def fault(code: str = "connect", retry: Any = "here", **fields: Any) -> CallError:
    return CallError(code, "no", retry=retry, is_pool_fault=True, **fields)


def made(backend: Scripted, clock: FakeClock) -> tuple[Attempts, Breakers]:
    breakers = Breakers("here", [VARIANT], backend, clock)
    uniform = iter([0.0] * 1000)
    attempts = Attempts(backend, breakers, clock, attempts_max=3, uniform=lambda: next(uniform))
    return attempts, breakers


async def test_what_may_pass_is_tried_again_here() -> None:
    backend = Scripted(CallError("overloaded", "no", retry="here", after_s=0.01), fault(), None)
    attempts, breakers = made(backend, FakeClock())
    assert await attempts.run(call(), OPTIONS[0]) is ANSWER
    assert backend.calls == 3
    assert breakers.state(VARIANT) == "closed"


@pytest.mark.parametrize("retry", ["elsewhere", "never"])
async def test_what_does_not_pass_is_not(retry: Any) -> None:
    backend = Scripted(CallError("code", "no", retry=retry))
    attempts, _ = made(backend, FakeClock())
    with pytest.raises(CallError, match="no"):
        await attempts.run(call(), OPTIONS[0])
    assert backend.calls == 1


async def test_tries_here_have_an_end() -> None:
    backend = Scripted(CallError("overloaded", "no", retry="here", after_s=0.001))
    attempts, _ = made(backend, FakeClock())
    with pytest.raises(CallError):
        await attempts.run(call(), OPTIONS[0])
    assert backend.calls == TRIES_HERE_MAX


@pytest.mark.parametrize("after_s", [AFTER_S_MAX + 1, 5.0])
async def test_a_wait_that_is_too_long_for_the_server_or_the_deadline_is_not_waited(
    after_s: float,
) -> None:
    backend = Scripted(CallError("overloaded", "no", retry="here", after_s=after_s))
    clock = FakeClock(START + 112.0)  # 8 s before the deadline
    attempts, _ = made(backend, clock)
    async with asyncio.timeout(4):
        with pytest.raises(CallError) as caught:
            await attempts.run(call(), OPTIONS[0])
    assert (caught.value.code, backend.calls) == ("overloaded", 1)


async def test_a_server_that_never_answers_leaves_time_for_another() -> None:
    backend = Scripted(60.0)
    clock = FakeClock(START + 119.8)  # 0.2 s before the deadline
    attempts, breakers = made(backend, clock)
    began_at = asyncio.get_running_loop().time()
    with pytest.raises(CallError) as caught:
        await attempts.run(call(), OPTIONS[0])
    assert (caught.value.code, caught.value.retry) == ("timeout", "elsewhere")
    assert 0.09 < asyncio.get_running_loop().time() - began_at < 3
    # It had less time than it needs: that says nothing of the server.
    assert breakers.state(VARIANT) == "closed"
    assert not breakers._breakers[VARIANT].last


class Telling(Scripted):
    """A backend that tells so many pieces, so far apart, and then answers or is silent."""

    def __init__(self, pieces: int, apart_s: float, *, is_silent: bool = False) -> None:
        super().__init__(60.0 if is_silent else 0.0)
        self._pieces, self._apart_s = pieces, apart_s

    async def execute(self, asked: Any) -> Outcome:
        for number in range(self._pieces):
            if asked.tell is not None:
                await asked.tell({"n": number})
            await asyncio.sleep(self._apart_s)
        return await super().execute(asked)


async def tried(backend: Scripted, left_s: float, *, is_streamed: bool) -> tuple[str, float, int]:
    """How a try ends with so much time to the deadline, after how long, and what was told."""
    told: list[Any] = []

    async def tell(chunk: dict[str, Any]) -> None:
        told.append(chunk)

    attempts, _ = made(backend, FakeClock(START + 120.0 - left_s))
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    try:
        await attempts.run(replace(call(), tell=tell if is_streamed else None), OPTIONS[0])
        end = "answered"
    except CallError as error:
        end = error.code
    return end, loop.time() - began_at, len(told)


async def test_a_stream_that_its_client_has_begun_to_read_goes_on_beyond_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts_of, "STALLED_S", 0.2)
    # Half of the time is its share; an answer takes three quarters.
    assert (await tried(Telling(15, 0.1), 2.0, is_streamed=True))[::2] == ("answered", 15)
    end, took_s, _ = await tried(Telling(15, 0.1), 2.0, is_streamed=False)
    assert (end, took_s) == ("timeout", pytest.approx(1.0, abs=0.3))
    end, took_s, told = await tried(Telling(12, 0.1, is_silent=True), 4.0, is_streamed=True)
    assert (end, told) == ("timeout", 12)
    assert took_s == pytest.approx(2.0, abs=0.3), "one that falls silent leaves time for another"
    end, took_s, _ = await tried(Telling(100, 0.1), 2.0, is_streamed=True)
    assert (end, took_s) == ("timeout", pytest.approx(2.0, abs=0.3)), "the deadline holds"


def test_a_try_may_take_what_leaves_time_for_one_more() -> None:
    profile = call().profile
    needed = service_s(profile, OPTIONS[0])
    assert limit_s(profile, OPTIONS[0], START, 3) == pytest.approx(120 - 2 * needed)
    assert limit_s(profile, OPTIONS[0], START + 119, 3) == pytest.approx(0.5)
    assert limit_s(profile, OPTIONS[0], START + 119, 1) == pytest.approx(1.0)


async def test_failures_in_a_row_open_the_circuit_and_nothing_more_is_sent() -> None:
    backend = Scripted(fault(retry="elsewhere"))
    attempts, breakers = made(backend, FakeClock())
    for _ in range(FAILURES_MAX):
        assert breakers.state(VARIANT) == "closed"
        with pytest.raises(CallError, match="no"):
            await attempts.run(call(), OPTIONS[0])
    assert breakers.state(VARIANT) == "open"
    assert breakers.changed.is_set()
    with pytest.raises(CallError) as caught:
        await attempts.run(call(), OPTIONS[0])
    assert (caught.value.code, caught.value.retry) == ("circuit_open", "elsewhere")
    assert backend.calls == FAILURES_MAX


def test_half_of_the_last_calls_open_the_circuit_too() -> None:
    breaker = Breaker()
    opened = [breaker.take(START, is_failure=n % 2 == 0) for n in range(LAST_CALLS)]
    assert opened == [False] * (LAST_CALLS - 1) + [True]


def test_a_third_of_them_does_not() -> None:
    breaker = Breaker()
    assert not any(breaker.take(START, is_failure=n % 3 == 0) for n in range(200))


async def test_requests_at_fault_say_that_the_server_is_well() -> None:
    backend = Scripted(fault(retry="elsewhere"), CallError("request_refused", "n", retry="never"))
    attempts, breakers = made(backend, FakeClock())
    for _ in range(2 * FAILURES_MAX):
        backend.calls = backend.calls % 2
        with pytest.raises(CallError):
            await attempts.run(call(), OPTIONS[0])
    assert list(breakers._breakers[VARIANT].last) == [True, False] * FAILURES_MAX


async def test_a_probe_that_passes_closes_the_circuit_and_one_that_fails_waits_longer() -> None:
    backend, clock = Scripted(None), FakeClock()
    backend.probes = [fault(), fault(), None]
    _, breakers = made(backend, clock)
    states: list[str] = []
    watching = asyncio.create_task(breakers.watch())
    await asyncio.sleep(0)
    for _ in range(FAILURES_MAX):
        breakers.failed(VARIANT)
    breaker = breakers._breakers[VARIANT]
    for wait_s in (1.0, 2.0, 4.0):
        assert breaker.state == "open"
        assert breaker.probe_at == pytest.approx(clock.at + wait_s)
        clock.at = breaker.probe_at
        breakers._opened.set()  # the clock has moved; the loop's has not
        before = len(backend.probes)
        while len(backend.probes) == before:
            await asyncio.sleep(0)
            states.append(breaker.state)
        await asyncio.sleep(0)
    assert breaker.state == "closed"
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    for _ in range(FAILURES_MAX):
        breakers.failed(VARIANT)
    assert breaker.probe_at == pytest.approx(clock.at + 1.0)


def test_a_clock_that_was_set_back_delays_no_probe() -> None:
    breaker = Breaker()
    breaker.reopen(START)
    assert [breaker.is_due(START + s) for s in (0.0, 0.9, 1.0, 5.0)] == [False, False, True, True]
    assert breaker.is_due(START - 3600)


def test_a_server_that_answers_probes_alone_is_probed_less_and_less_often() -> None:
    breaker, waits = Breaker(), []
    for _ in range(6):
        while not breaker.take(START, is_failure=True):
            pass
        waits.append(breaker.probe_at - START)
        breaker.close()
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    breaker.take(START, is_failure=False)
    while not breaker.take(START, is_failure=True):
        pass
    assert breaker.probe_at - START == 1.0


async def test_a_defect_of_a_probe_ends_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    backend, clock = Scripted(), FakeClock()
    backend.probes = [KeyError("what the answer said"), None]
    _, breakers = made(backend, clock)
    breakers.distrust()
    watching = asyncio.create_task(breakers.watch())
    await asyncio.sleep(0.01)
    assert (watching.done(), breakers.state(VARIANT), len(backend.probes)) == (False, "open", 1)
    assert "KeyError" in caplog.text
    assert "what the answer said" not in caplog.text
    clock.at += PROBE_AFTER_S
    watching.cancel()
    await asyncio.wait([watching])
    watching = asyncio.create_task(breakers.watch())
    await asyncio.sleep(0.01)
    assert (watching.done(), breakers.state(VARIANT)) == (False, "closed")
    watching.cancel()


async def test_a_cancellation_that_nobody_asked_for_is_a_defect() -> None:
    attempts, _ = made(Scripted(asyncio.CancelledError()), FakeClock())
    with pytest.raises(CallError) as caught:
        await attempts.run(call(), OPTIONS[0])
    assert (caught.value.code, caught.value.retry) == ("backend_defect", "elsewhere")


async def test_a_cancellation_is_none() -> None:
    attempts, breakers = made(Scripted(60.0), FakeClock())
    running = asyncio.create_task(attempts.run(call(), OPTIONS[0]))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert breakers.state(VARIANT) == "closed"
