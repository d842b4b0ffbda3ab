"""Quotes through router, quote desk, hold and worker, on the log in memory."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hold_cases import make_batcher, run
from memory_log import MemoryLog
from policy_change_cases import policy
from stream_cases import (
    MODEL,
    POLICY,
    START,
    Yard,
    drain,
    header,
    make_profile,
    request,
    step_until,
)
from worker_cases import ScriptedBackend, serve

from shunter.audit.replay import replay_steps
from streams.config.active_policy import DecisionContext
from streams.config.token_counting import TokenCounter
from streams.engine.log import Outgoing
from streams.router.quote_stage import QuoteStage
from streams.router.stage import Router
from topics import Profile, QuoteAnswer, Quoted, decode
from topics.records import headers as h

SECRET = "between routers"  # noqa: S105 - of these tests
TERMS = """
quotes:
  valid_s: 60
  errors: {any: {direct: [[0.5, 0.0], [0.95, 0.7], [0.99, 1.2]], hold: [[0.5, 0.0], [0.99, 0.2]]}}
tenants: {vault: {needs_key: true}, hurried: {rate_per_s: 0.1}}
"""


def open_yard() -> Yard:
    return Yard(policy=POLICY + TERMS)


async def routed(yard: Yard, secret: str | None = SECRET) -> None:
    yard.cluster.members.clear()
    router = Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=yard.settings.request_bytes_max,
        duplicate_window_records=yard.settings.duplicate_window_records,
        quote_secret=secret,
    )
    await drain(await yard.run(router, MemoryLog(yard.cluster)))


async def quoted(yard: Yard, secret: str | None = SECRET) -> None:
    yard.cluster.members.clear()
    desk = QuoteStage(
        DecisionContext(yard.situation(), yard.evidence_writer(), TokenCounter({})),
        yard.clock,
        request_bytes_max=yard.settings.request_bytes_max,
        quote_secret=secret,
    )
    await drain(await yard.run(desk, MemoryLog(yard.cluster)))


def ask(yard: Yard, question_id: str = "q1", **fields: Any) -> None:
    requests = fields.pop("requests", [request(created_at=None)])
    value = orjson.dumps({"id": question_id, "requests": requests} | fields)
    yard.cluster.publish(Outgoing(yard.catalogue.quotes, question_id.encode(), value))


def answers(yard: Yard) -> dict[str, QuoteAnswer]:
    records = yard.cluster.records(yard.catalogue.quote_answers)
    found = [decode(QuoteAnswer, record.value or b"") for record in records]
    assert len({each.id for each in found}) == len(found)
    return {each.id: each for each in found}


def send(yard: Yard, quote_id: str, **fields: Any) -> None:
    yard.publish(**({"created_at": None, "quote_id": quote_id} | fields))


async def test_an_accepted_quote_binds_the_request_and_its_evidence_names_it() -> None:
    yard = open_yard()
    ask(yard)
    await quoted(yard)
    offer = answers(yard)["q1"].offers[0]
    assert offer.cost_usd == offer.nano_usd / 1e9
    (evidence,) = yard.evidence("quoted")
    assert (evidence.request_id, evidence.offers[0].nano_usd) == ("q1", offer.nano_usd)
    # The evidence names the quote, and accepts none.
    assert evidence.offers[0].quote_ids == {}
    assert evidence.offers[0].quotes == offer.quotes
    yard.clock.at += 30
    send(yard, offer.quote_ids["r1"])
    await routed(yard)
    (placed,) = yard.evidence("placed")
    assert placed.profile is not None
    assert placed.profile.quote == offer.quotes["r1"]
    assert offer.within_s is not None
    assert placed.profile.deadline == pytest.approx(START + 30 + offer.within_s)
    (found,) = replay_steps([placed], lambda *_: (yard.options, policy(POLICY + TERMS)))
    assert not found.differences
    (record,) = yard.lane("premium-eu", "direct")
    assert h.read_profile(record.headers).quote == offer.quotes["r1"]
    assert header(record, h.CRITICAL) == "profile.quote"


async def test_a_quote_that_is_accepted_twice_has_one_run() -> None:
    yard = open_yard()
    ask(yard)
    await quoted(yard)
    offer = answers(yard)["q1"].offers[0]
    for times in (2, 1):  # twice at once, and once more later
        for _ in range(times):
            send(yard, offer.quote_ids["r1"])
        await routed(yard)
    assert len(yard.evidence("placed")) == 1
    assert len(yard.lane("premium-eu", "direct")) == 1


async def test_the_price_is_at_most_the_quoted_one_and_evidence_has_both() -> None:
    yard = open_yard()
    ask(yard)
    await quoted(yard)
    offer = answers(yard)["q1"].offers[0]
    send(yard, offer.quote_ids["r1"])
    await routed(yard)
    backend = ScriptedBackend()
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running, "the call")
    # 4 dollars an hour for 0.9 s: a thousand times what was expected.
    backend.finish("r1", finished_at=START + 1.5)
    await step_until(transactor, yard.results, "the result")
    cost = yard.results()["r1"].cost
    assert cost is not None
    assert cost.usd == cost.quoted_usd == offer.nano_usd / 1e9
    (executed,) = yard.evidence("executed")
    assert executed.charge is not None
    assert executed.got is not None
    assert executed.charge.quote == offer.quotes["r1"].id
    assert executed.charge.cost_nano_usd == round(executed.got.cost_usd * 1e9) == 1_000_000
    assert executed.charge.charged_nano_usd == offer.nano_usd < 1_000_000


async def test_quote_true_on_the_ingest_topic_is_answered_and_never_runs() -> None:
    yard = open_yard()
    yard.publish(id="r1", quote=True, created_at=None, service_tier="flex", completion_window="1h")
    yard.publish(id="r1", quote=True, created_at=None, service_tier="flex", completion_window="1h")
    await routed(yard)
    records = yard.cluster.records(yard.catalogue.quote_answers)
    first, second = (decode(QuoteAnswer, record.value or b"") for record in records)
    assert {(o.tier, o.within_s) for o in first.offers} == {("flex", 3600.0)}
    assert first.offers == second.offers
    assert yard.results() == {}
    # Nor is it the first of its id.
    send(yard, first.offers[0].quote_ids["r1"])
    await routed(yard)
    assert [e.step for e in yard.evidence()] == ["quoted", "quoted", "placed"]
    send(yard, first.offers[0].quote_ids["r1"])
    await routed(yard)
    assert len(yard.evidence("duplicate")) == 1


async def test_a_held_request_keeps_its_quote_to_the_lane() -> None:
    yard = open_yard()
    ask(yard, requests=[request(created_at=None, task="summarization")], windows=["1h"])
    await quoted(yard)
    offer = answers(yard)["q1"].offers[0]
    send(yard, offer.quote_ids["r1"], task="summarization")
    await routed(yard)
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at += 600
    await step_until(transactor, lambda: not yard.held(), "the release")
    (released,) = yard.evidence("released")
    assert released.placement is not None
    (record,) = yard.lane(released.placement.pool, released.placement.path)
    assert h.read_profile(record.headers).quote == offer.quotes["r1"]
    assert header(record, h.CRITICAL) == "profile.quote"


async def test_a_tier_in_the_body_is_that_of_the_quote() -> None:
    yard = open_yard()
    body = {"model": MODEL, "messages": [], "service_tier": "flex"}
    ask(yard, requests=[request(created_at=None, body=body)])
    await quoted(yard)
    send(yard, answers(yard)["q1"].offers[0].quote_ids["r1"], body=body)
    await routed(yard)
    (profile,) = [e.profile for e in yard.evidence() if e.profile is not None]
    assert (profile.tier, profile.quote is not None) == ("flex", True)
    assert yard.results() == {}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"id": "r2"}, "quote_altered"),
        ({"tenant": "other"}, "quote_altered"),
        ({"constraints": {"regions": ["eu-west"]}}, "quote_altered"),
        ({"service_tier": "priority"}, "quote_altered"),
        ({"completion_window": "1s"}, "quote_altered"),
        ({"deadline": START + 9}, "quote_altered"),
        ({}, "quote_expired"),
    ],
)
async def test_an_altered_or_expired_quote_is_refused_by_name(
    change: dict[str, Any], code: str
) -> None:
    yard = open_yard()
    ask(yard)
    await quoted(yard)
    token = answers(yard)["q1"].offers[0].quote_ids["r1"]
    yard.clock.at += 60.1 if code == "quote_expired" else 1
    send(yard, token, **change)
    await routed(yard)
    (result,) = yard.results().values()
    assert (result.status, result.error and result.error.code) == ("rejected", code)


async def test_a_token_that_nobody_here_made_is_refused() -> None:
    yard = open_yard()
    ask(yard)
    await quoted(yard, "another secret")
    send(yard, answers(yard)["q1"].offers[0].quote_ids["r1"])
    await routed(yard)
    (result,) = yard.results().values()
    assert (result.error and result.error.code) == "quote_altered"


async def test_without_a_secret_nothing_is_quoted_and_nothing_taken() -> None:
    yard = open_yard()
    ask(yard)
    await quoted(yard, None)
    error = answers(yard)["q1"].error
    assert error is not None
    assert (error.code, "SHUNTER_QUOTE_SECRET" in error.message) == ("quotes_off", True)
    yard.publish(id="r1", created_at=None, quote_id="AA." + "A" * 43)
    await routed(yard, None)
    (result,) = yard.results().values()
    assert (result.error and result.error.code) == "quotes_off"


async def test_a_batch_is_quoted_in_one_answer_and_each_request_takes_its_own() -> None:
    yard = open_yard()
    requests = [
        request(id=f"r{n}", created_at=None, task="summarization", hints={"output_tokens": 10 + n})
        for n in range(5)
    ]
    ask(yard, requests=requests, windows=["1h"], tiers=["flex", "batch"], metadata={"job": 1})
    await quoted(yard)
    answer = answers(yard)["q1"]
    assert answer.metadata == {"job": 1}
    assert {offer.tier for offer in answer.offers} == {"flex", "batch"}
    for offer in answer.offers:
        assert offer.nano_usd == sum(each.nano_usd for each in offer.quotes.values())
        assert offer.quote_ids.keys() == offer.quotes.keys() == {f"r{n}" for n in range(5)}
    offer = answer.offers[0]
    for sent in requests:
        yard.publish(**sent, quote_id=offer.quote_ids[sent["id"]])
    await routed(yard)
    held = {e.request_id: e.profile for e in yard.evidence("held")}
    assert {name: each and each.quote for name, each in held.items()} == offer.quotes


PROMPT = [{"role": "user", "content": "word " * 3000}]
LONG = {"model": MODEL, "messages": PROMPT, "max_tokens": 900}
TEXTS = "/v1/completions"


async def price_of(**fields: Any) -> int:
    """The price of one request, in nano-dollars."""
    yard = open_yard()
    ask(yard, requests=[request(created_at=None, **fields)], windows=["1h"])
    await quoted(yard)
    return answers(yard)["q1"].offers[0].nano_usd


async def test_a_hint_of_shorter_lengths_lowers_no_price() -> None:
    """It bounds what the client pays, and is the client's word alone."""
    plain = await price_of(body=LONG)
    for hints in ({"input_tokens": 1, "output_tokens": 1}, {"output_tokens": 0}):
        assert await price_of(body=LONG, hints=hints) == plain
    assert await price_of(body=LONG, hints={"output_tokens": 900}) > plain


async def test_each_answer_that_is_asked_for_is_priced() -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "which track?"}]}
    one = await price_of(body=chat)
    # Four of them run at a time, and cost hardly more than one.
    few, many = [await price_of(body=chat | {"n": n}) for n in (4, 400)]
    assert one < few < 1.5 * one
    assert abs(many - 100 * few) < 3 * few
    text = {"model": MODEL, "prompt": "which track?"}
    best = await price_of(url=TEXTS, body=text | {"n": 2, "best_of": 5})
    assert best == await price_of(url=TEXTS, body=text | {"n": 5})
    long = "word " * 3000
    listed, alone = text | {"prompt": [long] * 6, "n": 2}, text | {"prompt": long, "n": 12}
    assert await price_of(url=TEXTS, body=listed) > 1.2 * await price_of(url=TEXTS, body=alone)
    for odd in (None, 0, -3, True, 2.5):
        assert await price_of(body=chat | {"n": odd}) == one
    assert await price_of(body=chat | {"n": "4"}) == few


@pytest.mark.parametrize(
    ("slo", "window", "said"),
    [
        ({"ttft_ms": 0.01}, "1h", "a first token within 0.01 ms: that takes a chance of 0.5"),
        ({"tpot_ms": 0.001}, "1h", "0.001 ms per output token: that takes a chance of 0.5"),
        ({"ttft_ms": 0.01, "tpot_ms": 0.001}, "1h", "longer slo.ttft_ms and slo.tpot_ms"),
        ({"ttft_ms": 60_000}, "1ms", "by any of these deadlines: that takes a chance of 0.5"),
        ({"ttft_ms": 0.01}, "1ms", "by any of these deadlines: that takes a chance of 0.5"),
    ],
)
async def test_a_refusal_says_whether_it_is_the_slo_or_the_deadline(
    slo: dict[str, float], window: str, said: str
) -> None:
    yard = open_yard()
    ask(yard, requests=[request(created_at=None, slo=slo)], windows=[window])
    await quoted(yard)
    error = answers(yard)["q1"].error
    assert error is not None
    assert (error.code, said in error.message) == ("no_quote", True), error.message


async def test_a_refusal_without_deadlines_says_what_refuses_the_request() -> None:
    yard = open_yard()
    ask(yard, requests=[request(created_at=None, constraints={"regions": ["mars"]})])
    await quoted(yard)
    error = answers(yard)["q1"].error
    assert error is not None
    assert "premium-eu is in a region that is not allowed" in error.message


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"requests": [request(created_at=None, model="unheard-of")]}, "no_quote"),
        ({"requests": [request(created_at=None, task="unheard-of")]}, "unknown_task"),
        ({"requests": [request(created_at=None, constraints={"regions": ["mars"]})]}, "no_quote"),
        ({"requests": [request(created_at=None, tenant="vault")]}, "key_required"),
        ({"deadlines": [START - 1]}, "deadline_passed"),
        ({"windows": ["1ms"]}, "no_quote"),
    ],
)
async def test_what_can_not_be_quoted_is_told_with_the_reason(
    fields: dict[str, Any], code: str
) -> None:
    yard = open_yard()
    ask(yard, **fields)
    await quoted(yard)
    answer = answers(yard)["q1"]
    assert (answer.offers, answer.error and answer.error.code) == ((), code)
    assert [e.reason for e in yard.evidence("quoted")] == [code]
    assert yard.results() == {}


async def test_a_hurried_tenant_asks_no_more_often_than_it_may_send() -> None:
    yard = open_yard()
    for n in range(3):
        ask(yard, f"q{n}", requests=[request(created_at=None, tenant="hurried")])
    await quoted(yard)
    codes = [answer.error and answer.error.code for answer in answers(yard).values()]
    assert codes == [None, "rate_limited", "rate_limited"]


@pytest.mark.parametrize(
    "value",
    [
        b"no JSON",
        b'{"id": "q", "requests": []}',
        b'{"id": "q", "requests": [{"id": "a"}]}',
        orjson.dumps({"id": "q", "requests": [request(), request()]}),
        orjson.dumps({"id": "q", "requests": [request(quote=True)]}),
        orjson.dumps({"id": "q", "requests": [request(tenant="a"), request(id="b", tenant="b")]}),
        orjson.dumps(
            {"id": "q", "requests": [request()], "windows": ["1h"] * 5, "tiers": ["flex", "batch"]}
        ),
    ],
)
async def test_what_is_no_question_becomes_a_dead_letter(value: bytes) -> None:
    yard = open_yard()
    yard.cluster.publish(Outgoing(yard.catalogue.quotes, b"q", value))
    ask(yard, "after")
    await quoted(yard)
    assert len(yard.dead_letters()) == 1
    assert list(answers(yard)) == ["after"]


def test_a_profile_with_a_quote_is_read_as_it_was_written() -> None:
    own: dict[str, Any] = {"quote": Quoted("q", 5, 0.99)}

    profile: Profile = replace(make_profile(open_yard().policy), **own)
    headers = list(h.encoded(profile=profile).items())
    assert h.read_profile(headers) == profile
