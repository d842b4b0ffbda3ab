"""Tries that give no answer cost what they used: in evidence, results, ledger and reports."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from cancellation_cases import cancel
from model_server import WORDS, Exchange, serving
from openai_cases import backend_at, call
from stream_cases import (
    START,
    Yard,
    make_options,
    make_policy,
    make_profile,
    request,
    step_until,
)
from worker_cases import PROMISED, VARIANT, ScriptedBackend, place, serve

from policies.config.prices import TokenRates
from shunter.audit.report import AuditReport
from streams.engine.clock import SystemClock
from streams.usage_report import Endings, UsageRow
from topics import Envelope, Placement, Profile, Usage, encode, parse_request
from topics.records import headers as h
from topics.records.money import Spent
from workers.backends.base import Call, CallError
from workers.backends.simulated.backend import SimulatedBackend

# Of the pool, whose device costs 4 dollars an hour.
USED, NANO_USD = (36.0, 20, 3), 40_000_000
SPENT = Spent(NANO_USD, 20, 3, 36.0)


async def test_a_failed_try_is_told_and_goes_with_the_request() -> None:
    yard, backend = Yard(), ScriptedBackend()
    backend.used["c0"] = USED
    place(yard, "c0")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.evidence, "the fallback")
    (fell_back,) = yard.evidence("fell_back")
    assert fell_back.spent == SPENT
    (record,) = yard.cluster.records(yard.catalogue.reroutes)
    assert h.read(record.headers, h.PROFILE, Profile).spent == SPENT


async def test_an_answer_counts_what_came_before_it() -> None:
    yard, backend = Yard(), ScriptedBackend()
    profile = replace(make_profile(yard.policy, id="c0"), attempt=2, spent=SPENT)
    place(yard, "c0", profile=profile)
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.finish("c0", device_s=3.6)
    await step_until(transactor, yard.results, "the result")
    cost = yard.results()["c0"].cost
    assert cost is not None
    assert cost.usd == pytest.approx(0.044)
    (executed,) = yard.evidence("executed")
    assert executed.got is not None
    assert (executed.got.cost_usd, executed.spent) == (pytest.approx(0.004), None)


async def test_what_expires_while_it_runs_and_what_fails_cost_what_they_used() -> None:
    yard, backend = Yard(), ScriptedBackend()
    late = replace(make_profile(yard.policy, id="late", deadline=START + 0.1), attempt=3)
    place(yard, "late", profile=late)
    place(yard, "bad")
    backend.used |= {"late": USED, "bad": USED}
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 2, "the calls")
    backend.lose("bad", elsewhere=False)
    yard.clock.at = START + 0.1
    await step_until(transactor, lambda: len(yard.results()) == 2, "the ends")
    assert {e.step: e.spent for e in yard.evidence()} == {"failed": SPENT, "expired": SPENT}
    costs = [result.cost for result in yard.results().values()]
    assert [cost and cost.usd for cost in costs] == [pytest.approx(0.04)] * 2
    assert [result.usage for result in yard.results().values()] == [Usage(20, 3)] * 2


async def test_what_a_client_cancels_costs_what_it_used() -> None:
    yard, backend = Yard(), ScriptedBackend()
    backend.used["c0"] = USED
    place(yard, "c0")
    place(yard, "c1")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 2, "the calls")
    cancel(yard, "c0")
    await step_until(transactor, yard.results, "its end")
    (cancelled,) = yard.evidence("cancelled")
    assert cancelled.spent == SPENT
    assert yard.results()["c0"].usage == Usage(20, 3)


async def test_all_tries_count_in_the_tokens_of_a_request_without_an_answer() -> None:
    yard, backend = Yard(), ScriptedBackend()
    backend.used["c0"] = USED
    place(yard, "c0", profile=replace(make_profile(yard.policy, id="c0"), attempt=3, spent=SPENT))
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.results, "its end")
    result = yard.results()["c0"]
    assert (result.status, result.usage) == ("failed", Usage(40, 6))


async def test_a_request_that_no_server_began_has_used_no_tokens() -> None:
    yard, backend = Yard(), ScriptedBackend()
    place(yard, "c0", profile=replace(make_profile(yard.policy, id="c0"), attempt=3))
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.results, "its end")
    assert yard.results()["c0"].usage is None


async def test_a_tier_is_charged_its_price() -> None:
    yard, backend = Yard(), ScriptedBackend()
    profile = replace(make_profile(yard.policy, id="c0"), price_factor=2.5)
    place(yard, "c0", profile=profile)
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.finish("c0", device_s=3.6)
    await step_until(transactor, yard.results, "the result")
    (executed,) = yard.evidence("executed")
    assert executed.got is not None
    assert executed.got.cost_usd == pytest.approx(0.01)


async def test_a_promise_from_the_hold_is_held_against_what_came() -> None:
    yard, backend = Yard(), ScriptedBackend()
    held = Envelope(cost_usd=0.0001, ttft_s=None, finish_s=60.0)
    extra = ((h.HELD_PROMISE, encode(held)),)
    place(yard, "c0", lane="batch", extra=extra)
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.finish("c0", device_s=3.6)
    await step_until(transactor, yard.results, "the result")
    (executed,) = yard.evidence("executed")
    assert (executed.held_promise, executed.promised) == (held, PROMISED)
    (record,) = yard.cluster.records(yard.catalogue.evidence)
    report, row = AuditReport(START - 10, START + 10), UsageRow()
    report.add(record.value or b"")
    counts = report.total()
    assert (counts.held_promises, counts.dear_since_held, counts.late_since_held) == (1, 1, 0)
    ending = Endings().take(record.value)
    assert ending is not None
    row.add(ending)
    assert (row.held_promises, row.dearer_than_held, row.later_than_held) == (1, 1, 0)


async def test_ledger_and_report_count_what_gave_no_answer() -> None:
    yard, backend = Yard(), ScriptedBackend()
    backend.used |= {"c0": USED}
    place(yard, "c0")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.evidence, "the fallback")
    (record,) = yard.cluster.records(yard.catalogue.reroutes)
    again = h.read(record.headers, h.PROFILE, Profile)
    place(yard, "c0", profile=replace(again, attempt=3))
    await step_until(transactor, lambda: backend.running, "the second call")
    backend.lose("c0", elsewhere=False)
    await step_until(transactor, yard.results, "the end")
    endings, row, report = Endings(), UsageRow(), AuditReport(START - 10, START + 10)
    for evidence in yard.cluster.records(yard.catalogue.evidence):
        report.add(evidence.value or b"")
        ending = endings.take(evidence.value)
        if ending is not None:
            row.add(ending)
    assert row.spent_usd == row.cost_usd == pytest.approx(0.08)
    assert report.total().spent_usd == report.total().cost_usd == pytest.approx(0.08)


async def test_a_vendor_is_paid_by_the_usage_that_it_tells() -> None:
    rates = TokenRates(600_000_000, 60_000_000, 2_400_000_000, 0, 0)
    option = replace(make_options().of("premium-eu", VARIANT), usd_per_s=0.0, rates=rates)
    assert option.cost_usd(99.0, 1000, 100, 400) == pytest.approx(0.000624)
    assert option.cut_cost_usd(99.0, 1000, 0) == 0.0
    assert option.cut_cost_usd(99.0, 1000, 10) == pytest.approx(0.000624)


async def test_a_cancelled_call_of_a_simulated_device_has_used_it() -> None:
    backend = SimulatedBackend((make_options().of("premium-eu", VARIANT),), SystemClock())
    await backend.start()
    try:
        hints = {"input_tokens": 500, "output_tokens": 20_000}
        fields: dict[str, Any] = {"id": "long", "hints": hints}
        parsed = parse_request(orjson.dumps(request(**fields)), bytes_max=100_000)
        placement = Placement("premium-eu", "fast", VARIANT, "fp8", "eu-west", "direct")
        long = Call(parsed, make_profile(make_policy(), **fields), placement)
        running = asyncio.create_task(backend.execute(long))
        await asyncio.sleep(0.3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        await backend.stop()
    meter = long.meter
    # Twenty times as fast as the clock.
    assert 0.1 < meter.device_s < 20.0
    assert meter.input_tokens == 500
    assert 10 < meter.output_tokens < 20_000


async def test_a_stream_that_breaks_off_has_cost_the_tokens_that_came() -> None:
    async def breaks(x: Exchange) -> None:
        await x.events()
        await x.event(x.piece(WORDS[0]))
        await x.event(x.piece(WORDS[1]))
        await x.end()

    asked = call("chat")
    async with serving(breaks) as server, backend_at(server.base_url) as backend:
        with pytest.raises(CallError, match="ended before its answer"):
            await backend.execute(asked)
    assert asked.meter.output_tokens == 2
    assert asked.meter.input_tokens == asked.profile.input_tokens
    assert asked.meter.device_s > 0


async def test_a_server_that_is_gone_costs_nothing() -> None:
    async with serving() as server:
        url = server.base_url
    asked = call("chat")
    async with backend_at(url) as backend:
        with pytest.raises(CallError):
            await backend.execute(asked)
    assert asked.meter.device_s == 0
