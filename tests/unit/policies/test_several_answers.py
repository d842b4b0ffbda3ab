"""Requests of several answers: each is priced, timed and limited, and a prompt is computed once."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from decisions import decide_in
from evidence_cases import inputs_as_recorded, with_inputs
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import FLEET as FLEET_TEXT
from policy_cases import (
    NOW,
    POLICY,
    PROPERTY,
    a_policy,
    a_situation,
    bulk,
    profile,
    request,
    some_options,
    status,
    tagged,
    views,
)
from release_cases import members, target_of

from policies import (
    FleetView,
    Placer,
    Release,
    Situation,
    decide,
    release_again,
    release_inputs_of,
    tag,
    windows_of,
)
from policies.autoscaling import device_s
from policies.batching.groups import group_of
from policies.config.options import Option
from policies.config.prices import TokenRates
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.learning.feedback import Experience
from policies.placement.inputs import ReleaseInputs, inputs_of
from policies.placement.quoting import menu, price_nano
from policies.placement.reservation import amounts_of
from policies.scoring.estimate import Estimate, batch_limit, estimate, room
from topics import Envelope, Evidence, Profile, Source, Usage, VariantStatus, decode
from topics.records import headers as h
from topics.records.evidence_bytes import evidence_bytes
from topics.records.money import Amounts

FLEET = some_options()
OPTIONS = [option for of_pool in FLEET.by_pool.values() for option in of_pool]
BUDGETS = """
tenants:
  acme: {budgets: [{window_s: 3600, usd: 1.0}]}
"""
several = st.integers(2, 300)
lengths = st.tuples(st.integers(0, 3000), st.integers(0, 900))


def found(asked: Profile, option: Option, view: FleetView, members: int = 1) -> Estimate:
    return estimate(asked, standing_of(option, view.load(option.pool)), 0.05, members)


@PROPERTY
@given(lengths, several, several, st.sampled_from(OPTIONS), views(FLEET), st.integers(1, 40))
def test_more_replies_cost_and_take_no_less(
    tokens: tuple[int, int], n: int, more: int, option: Option, view: FleetView, members: int
) -> None:
    asked = bulk(input_tokens=tokens[0], output_tokens=tokens[1])
    counts = (1, n, n + more)
    each = [found(replace(asked, replies=count), option, view, members) for count in counts]
    for less, most in pairwise(each):
        assert most.cost_usd >= less.cost_usd * (1 - 1e-12)
        assert most.finish_s >= less.finish_s - 1e-9
        assert most.ttft_s >= less.ttft_s - 1e-9
    if view.load(option.pool).is_idle:
        # Beside others each one more may fill places that cost more.
        assert each[1].cost_usd <= n * each[0].cost_usd * (1 + 1e-9)


@PROPERTY
@given(lengths, several, several, st.sampled_from(OPTIONS), views(FLEET))
def test_more_prompts_cost_and_take_no_less(
    tokens: tuple[int, int], count: int, more: int, option: Option, view: FleetView
) -> None:
    one = bulk(input_tokens=max(1, tokens[0]), output_tokens=tokens[1])

    def of(prompts: int) -> Estimate:
        asked = replace(one, prompts=prompts, input_tokens=prompts * one.input_tokens)
        return found(asked, option, view)

    each = [of(1), of(count), of(count + more)]
    for less, most in pairwise(each):
        assert most.cost_usd >= less.cost_usd * (1 - 1e-12)
        assert most.finish_s >= less.finish_s - 1e-9
    if view.load(option.pool).is_idle:
        assert each[1].cost_usd <= count * each[0].cost_usd * (1 + 1e-9)


def test_a_prompt_is_computed_once_for_all_its_replies_and_each_of_a_list_for_itself() -> None:
    option = FLEET.of("premium", "llama-fp8")
    idle = standing_of(option, PoolLoad(workers=1))
    silent = bulk(input_tokens=2000, output_tokens=1)
    one, replies = (estimate(replace(silent, replies=n), idle, 0.0) for n in (1, 20))
    assert replies.cost_usd == one.cost_usd
    listed = estimate(replace(silent, prompts=20, input_tokens=40_000), idle, 0.0)
    assert listed.cost_usd == pytest.approx(20 * one.cost_usd)
    assert listed.finish_s == pytest.approx(20 * one.finish_s)
    # The first token is that of the first.
    assert listed.ttft_s == pytest.approx(one.ttft_s)
    # Short ones are computed together, as the accelerator does it: weights are streamed once.
    short = bulk(input_tokens=20, output_tokens=1)
    once = estimate(short, idle, 0.0).ttft_s
    assert estimate(replace(short, prompts=100, input_tokens=2000), idle, 0.0).finish_s < 20 * once


def test_replies_are_written_together_as_far_as_the_device_has_places() -> None:
    option = FLEET.of("premium", "llama-fp8")
    idle = standing_of(option, PoolLoad(workers=1))
    places = option.max_batch

    def of(n: int) -> Estimate:
        return estimate(bulk(input_tokens=10, output_tokens=500, replies=n), idle, 0.0)

    assert of(places).finish_s < 2 * of(1).finish_s
    assert of(4 * places).finish_s == pytest.approx(4 * of(places).finish_s, rel=0.05)
    assert of(4 * places).cost_usd == pytest.approx(4 * of(places).cost_usd, rel=0.05)
    # Replies share the memory of their prompt, and prompts share none.
    long = bulk(input_tokens=20_000, output_tokens=10)
    replies = estimate(replace(long, replies=30), idle, 0.0)
    prompts = estimate(replace(long, prompts=30, input_tokens=600_000), idle, 0.0)
    fits = option.kv_capacity_tokens
    assert 20_300 < fits < 600_000
    assert replies.ttft_s == pytest.approx(prompts.ttft_s)
    rounds = -(-600_300 // fits)
    assert prompts.finish_s > 29 * prompts.ttft_s + rounds * 10 * prompts.tpot_s
    assert replies.finish_s < replies.ttft_s + 10 * replies.tpot_s


def test_each_answer_counts_against_a_limit_of_cost() -> None:
    where = a_situation()
    asked = profile(deadline=NOW + 3000, ttft_s=None, tpot_s=None)
    one = decide_in(asked, where, NOW)
    assert one.promised is not None
    limited = replace(asked, max_cost_usd=10 * one.promised.cost_usd)
    assert decide_in(limited, where, NOW).action == "place"
    many = decide_in(replace(limited, replies=1000), where, NOW)
    assert many.action == "reject"
    assert set((many.refusals or {}).values()) >= {"max_cost"}
    listed = replace(limited, prompts=1000, input_tokens=1000 * limited.input_tokens)
    assert decide_in(listed, where, NOW).action == "reject"


@PROPERTY
@given(st.integers(1, 200), st.integers(1, 50), st.floats(1e-7, 1e-1), views(FLEET))
def test_what_is_promised_is_within_the_limit_and_is_what_was_quoted(
    replies: int, prompts: int, limit_usd: float, view: FleetView
) -> None:
    where = replace(a_situation(), view=view)
    asked = profile(
        replies=replies, prompts=prompts, input_tokens=300 * prompts, max_cost_usd=limit_usd
    )
    promised = decide_in(asked, where, NOW).promised
    if promised is not None:
        assert promised.cost_usd <= limit_usd
    free = replace(asked, max_cost_usd=None)
    offers, _ = menu(lambda _: [free], ["auto"], [], [3000.0], where, NOW)
    costs = {each.cost_usd for each in decide_in(free, where, NOW).candidates}
    margin = where.policy.quotes.margin
    assert {offer.nano_usd[0] for offer in offers} <= {
        price_nano(cost_usd, margin) for cost_usd in costs if cost_usd is not None
    }


@pytest.mark.parametrize(
    ("url", "body", "prompts", "replies"),
    [
        ("/v1/chat/completions", {}, 1, 1),
        ("/v1/chat/completions", {"n": 3}, 1, 3),
        ("/v1/chat/completions", {"n": True}, 1, 1),
        ("/v1/chat/completions", {"n": 0}, 1, 1),
        ("/v1/chat/completions", {"n": -7}, 1, 1),
        # As servers take them, which would be a way round a limit.
        ("/v1/chat/completions", {"n": 100.0}, 1, 100),
        ("/v1/chat/completions", {"n": " 100 "}, 1, 100),
        ("/v1/chat/completions", {"n": "many"}, 1, 1),
        ("/v1/chat/completions", {"n": 2.5}, 1, 1),
        ("/v1/chat/completions", {"n": 10**30}, 1, 1_000_000),
        ("/v1/chat/completions", {"n": 2, "prompt": ["a", "b"]}, 1, 2),
        ("/v1/completions", {"prompt": "a", "n": 2, "best_of": 5}, 1, 5),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}, 3, 2),
        ("/v1/completions", {"prompt": ["a"]}, 1, 1),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 1, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 2, 1),
        ("/v1/completions", {"prompt": []}, 1, 1),
        ("/v1/completions", {"prompt": ["a"] * 10, "n": 10**6}, 10, 100_000),
        ("/v1/embeddings", {"input": ["a", "b"], "n": 4}, 2, 1),
        ("/v1/embeddings", {"input": [5, 6, 7]}, 1, 1),
        ("/v1/moderations", {"input": ["a", "b"]}, 2, 1),
        ("/v1/moderations", {"input": [{"type": "text", "text": "a"}] * 2}, 1, 1),
    ],
)
def test_answers_are_counted_as_servers_count_them(
    url: str, body: dict[str, Any], prompts: int, replies: int
) -> None:
    asked = request(url=url, body={"model": "llama"} | body)
    assert (len(asked.prompts) or 1, asked.replies) == (prompts, replies)
    seen = tagged(url=url, body={"model": "llama"} | body).profile
    assert (seen.prompts, seen.replies, seen.answers) == (prompts, replies, prompts * replies)


def completion(where: Situation, prompts: list[int], **fields: Any) -> Profile:
    """A completion of prompts of so many tokens each, as a router tags it."""
    body = {"model": "llama", "prompt": ["w" * 4 * tokens for tokens in prompts]}
    return tag(
        request(url="/v1/completions", body=body | fields.pop("body", {}), **fields),
        where.policy,
        received_at=NOW,
        now=NOW,
        ingest_partition=0,
        serving=where.options.serving["llama"],
    ).profile


LLAMA = FLEET_TEXT.replace("  llama: {", "  llama: {operations: [chat, completions], ")


@pytest.mark.parametrize(
    ("prompts", "fields", "action"),
    [
        ([20_000] * 3, {}, "place"),
        ([32_000] * 3, {"body": {"max_tokens": 100}}, "place"),
        ([100, 100, 32_769], {}, "reject"),
        ([100, 100, 100], {"body": {"max_tokens": 32_768}}, "reject"),
        ([10] * 3, {"hints": {"input_tokens": 98_304}}, "place"),
        ([10] * 3, {"hints": {"input_tokens": 98_308}}, "reject"),
        ([10] * 3, {"hints": {"input_tokens": 98_304, "output_tokens": 1}}, "reject"),
        ([100, 32_768], {"hints": {"output_tokens": 1}}, "reject"),
        ([100, 32_767], {"hints": {"output_tokens": 1}}, "place"),
    ],
)
def test_the_longest_prompt_of_a_list_has_to_fit_and_not_all_together(
    prompts: list[int], fields: dict[str, Any], action: str
) -> None:
    where = a_situation(fleet=LLAMA)
    asked = completion(where, prompts, **fields)
    decision = decide_in(asked, where, NOW)
    assert decision.action == action
    if action == "reject":
        assert "context_too_long" in (decision.refusals or {}).values()


def test_requests_of_about_as_many_answers_share_a_batch_of_as_many_places() -> None:
    where = a_situation("board")
    few, more, most = (bulk(id=f"r{n}", replies=n) for n in (5, 8, 9))
    assert group_of(few, ()) == group_of(more, ()) != group_of(most, ())
    assert group_of(bulk(), ()) == group_of(bulk(prompts=1, replies=1), ()) != group_of(few, ())
    option = where.options.of("board", "llama-int8")
    assert batch_limit(bulk(replies=8), option, 100) == option.max_batch // 8
    assert batch_limit(bulk(replies=1000), option, 100) == 1
    idle, busy = (
        standing_of(option, PoolLoad(workers=1, running_by_variant={option.variant: running}))
        for running in (0, 20)
    )
    assert [room(idle, 8), room(idle, 1000)] == [option.max_batch // 8, 1]
    assert [room(busy, 8), room(busy, 1000)] == [room(busy) // 8, 0]
    held = members(few, more)
    together = target_of(held, where)
    assert together.members_max == option.max_batch // 8
    # The slowest of them is the measure of all.
    assert together.estimate == found(more, option, where.view, members=2)
    before = where.view.load("board").running_by_variant.get(option.variant, 0)
    release = windows_of(where.policy).judge(held, 2, together, NOW + 40)
    assert isinstance(release, Release)
    assert release.tokens == few.tokens + more.tokens == 2 * 400 + 13 * 200
    placer = Placer(where)
    placer.count_released(release, NOW)
    assert where.view.load("board").running_by_variant[option.variant] == before + 13


def test_a_release_of_several_answers_is_made_again_from_its_record() -> None:
    where, now = a_situation(), NOW + 31
    held = members(
        bulk(id="a", replies=7),
        bulk(id="b", replies=2, prompts=3, input_tokens=1200),
        bulk(id="c", replies=6),
    )
    release = windows_of(where.policy).judge(held, 3, target_of(held, where, now), now)
    assert isinstance(release, Release)
    inputs = release_inputs_of(release, where)
    record = Evidence(
        "a", "released", now, "router/a", Source("inference.held", 0, 0),
        profile=held[0].profile, inputs=inputs, candidates=release.target.candidates,
    )  # fmt: skip
    read = with_inputs(decode(Evidence, evidence_bytes(record)))
    assert read.profile == held[0].profile
    assert isinstance(read.inputs, ReleaseInputs)
    assert read.inputs.head == inputs.head
    again = release_again(read.profile, read.inputs, where.options, where.policy, now)
    assert again is not None
    assert again.target == release.target


def test_a_decision_on_several_answers_is_made_again_from_its_record() -> None:
    where = a_situation()
    asked = profile(replies=5, prompts=3, input_tokens=1200)
    decision, inputs = decide_in(asked, where, NOW), inputs_of(asked, where, NOW)
    assert decision.action == "place"
    told = h.encoded(profile=asked)
    assert h.read_profile(list(told.items())) == asked
    again = inputs_as_recorded(asked, inputs, decision, NOW)
    assert decide(asked, again, where.options, where.policy, NOW) == decision
    # What most are for is not written.
    assert b"replies" not in h.encoded(profile=profile())[h.PROFILE]


def test_a_placement_is_counted_by_its_answers() -> None:
    where = a_situation("premium")
    asked = profile(replies=6, ttft_s=None, tpot_s=None)
    placer = Placer(where)
    decision = placer.decide(asked, NOW).decision
    assert decision.option is not None
    placer.count_placed(asked, decision, NOW)
    load = where.view.load("premium")
    assert sum(load.running_by_variant.values()) == 6
    replicas = decision.option.replicas
    assert load.kv_usage == pytest.approx(
        (400 + 6 * 200) / (decision.option.kv_capacity_tokens * replicas)
    )


def test_a_budget_keeps_the_tokens_and_the_price_of_each_answer() -> None:
    where = a_situation()

    def kept(asked: Profile) -> Amounts:
        decision, inputs = decide_in(asked, where, NOW), inputs_of(asked, where, NOW)
        return amounts_of(asked, decision, inputs, where.options, where.policy, 300)

    one, many = (kept(profile(pools=("premium",), replies=n, ttft_s=None)) for n in (1, 50))
    assert (one.tokens, many.tokens) == (400 + 300, 400 + 50 * 300)
    # An idle replica is woken for the first, and runs 32 of them at a time.
    assert many.nano_usd > 50 / 32 * one.nano_usd
    assert many.requests == 1


def test_a_price_by_tokens_has_a_prompt_once_and_each_reply() -> None:
    rates = TokenRates(2_000_000, 1_000_000, 8_000_000, 500, 0)
    paid = replace(FLEET.of("premium", "llama-fp8"), usd_per_s=0.0, rates=rates)
    asked = bulk(input_tokens=1200, output_tokens=200, prompts=3, replies=4)
    found = estimate(asked, standing_of(paid, PoolLoad(workers=1)), 0.0)
    assert found.cost_usd == pytest.approx((500 + 2 * 1200 + 8 * 12 * 200) / 1e9)


def test_a_member_of_more_answers_is_the_measure_of_its_batch_and_needs_their_places() -> None:
    patient = POLICY.replace("windows: {", "windows: {room_wait_s: 60, ")
    where = a_situation("board", policy=patient)
    option = where.options.of("board", "llama-int8")
    # The longest of them is not the one of the most replies.
    long = bulk(id="a", replies=5, output_tokens=400)
    many = bulk(id="b", replies=8, output_tokens=200)
    most = replace(long, replies=8)
    assert long.tokens > many.tokens
    assert target_of(members(long, many), where).estimate == found(most, option, where.view, 2)
    running = {option.variant: VariantStatus(running=2 * option.max_batch - 60)}
    where.view.report(status("board", variants=running))
    standing = where.view.standing(option)
    assert 8 <= room(standing) < 8 * 8
    assert target_of(members(*[bulk(id=f"r{n}", replies=8) for n in range(9)]), where).is_crowded
    assert not target_of(members(*[bulk(id=f"r{n}") for n in range(9)]), where).is_crowded


def test_answers_of_a_question_are_placed_before_the_next_request_is_priced() -> None:
    where = a_situation("premium", "silicon")
    asked = [profile(id="a", ttft_s=None, tpot_s=None), profile(id="b", ttft_s=None, tpot_s=None)]

    def price_of_last(replies: int) -> int:
        question = [replace(asked[0], replies=replies), asked[1]]
        (offer, *_), _ = menu(lambda _: question, ["auto"], [], [3000.0], where, NOW)
        return offer.nano_usd[1]

    assert price_of_last(1) != price_of_last(30)


def test_a_list_of_prompts_is_no_turn_of_a_session() -> None:
    body = {"model": "llama", "prompt": ["a", "b"]}
    listed = tagged(url="/v1/completions", body=body, session="s")
    alone = tagged(url="/v1/completions", body=body | {"prompt": ["a"]}, session="s")
    assert (listed.profile.session, alone.profile.session) == (None, "s")


def test_a_replica_is_wanted_for_each_answer() -> None:
    option = FLEET.of("premium", "llama-fp8")
    one = device_s(bulk(output_tokens=500), option)
    assert device_s(bulk(output_tokens=500, replies=10), option) > 8 * one
    listed = bulk(output_tokens=500, prompts=10, input_tokens=4000)
    assert 8 * one < device_s(listed, option) <= 10 * one * (1 + 1e-9)


def test_the_usual_length_of_a_reply_is_that_of_one() -> None:
    experience = Experience(0.0)
    for _ in range(100):
        experience.completed(profile(replies=4, prompts=2), "llama-fp8", Usage(800, 8 * 50, 0))
    (told,) = experience.lengths.told()
    assert told.mean_tokens == 50
    # What they promise is for the last of several, and tells nothing of the errors of others.
    promised, got = Envelope(0.1, 0.9, 9.0, 0.09), Envelope(0.1, 0.3, 9.0, 0.3)
    for replies, known in ((4, False), (1, True)):
        for _ in range(100):
            experience.kept(profile(replies=replies), "llama-fp8", promised, got, 0.0)
        assert (experience.tpot_error("llama-fp8") is not None) is known


@pytest.mark.parametrize(
    ("policy", "fields", "believed"),
    [
        (POLICY, {}, True),
        (POLICY, {"constraints": {"max_cost_usd": 1.0}}, False),
        (POLICY, {"constraints": {"max_gco2": 1.0}}, False),
        (POLICY + BUDGETS, {"tenant": "acme"}, False),
        (POLICY + BUDGETS, {"tenant": "other"}, True),
    ],
)
def test_a_hint_makes_nothing_shorter_that_is_held_against_a_limit(
    policy: str, fields: dict[str, Any], believed: bool
) -> None:
    asked: dict[str, Any] = {"body": {"model": "llama", "messages": [{"content": "w" * 4000}]}}
    asked |= {"hints": {"input_tokens": 3, "output_tokens": 2}} | fields
    found = tagged(a_policy(policy), **asked)
    lengths = found.profile.input_tokens, found.profile.output_tokens
    assert lengths == ((3, 2) if believed else (1004, 200))
    sources = [found.tags[name].source for name in ("context_length", "output_length")]
    assert sources == (["client"] * 2 if believed else ["estimate", "policy"])
    # The body's own limit is one that servers keep to, and more than is expected is believed.
    short = tagged(a_policy(policy), **asked | {"body": asked["body"] | {"max_tokens": 2}})
    assert short.profile.output_tokens == 2
    longer = tagged(
        a_policy(policy), **asked | {"hints": {"input_tokens": 2000, "output_tokens": 700}}
    )
    assert (longer.profile.input_tokens, longer.profile.output_tokens) == (2000, 700)
