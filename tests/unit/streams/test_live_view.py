"""The live view: what the evidence is folded into, and its limits."""

from typing import Any

import pytest
from live_cases import CATALOGUE, NOW, OPTIONS, PLACEMENT, PROFILE, Topics, of_class, of_pool

from policies.scoring.premium import Work, premium_usd
from streams.live.counters import NAMES_MAX, OTHER
from streams.live.view import ASKED_MAX


class TestEnds:
    def test_each_end_counts_once_under_the_status_of_its_result(self) -> None:
        topics = Topics()
        topics.placed("a")
        topics.executed("a")
        topics.step("b", "rejected", reason="no_pool")
        topics.step("c", "expired", reason="deadline_passed")
        topics.fell_back("d", "x")
        topics.step("d", "failed", reason="timeout")
        topics.step("e", "duplicate", reason="same_id")
        topics.step("f", "dead_lettered", reason="not_json")
        ended = topics.shown().ended
        assert ended.statuses == {"completed": 1, "rejected": 1, "expired": 1, "failed": 1}
        assert ended.requests == 4
        assert ended.refusals == {"no_pool": 1, "deadline_passed": 1, "timeout": 1}
        assert (ended.duplicates, ended.dead_letters) == (1, {"not_json": 1})

    def test_what_is_older_than_the_window_is_in_the_total_alone(self) -> None:
        topics = Topics()
        topics.executed("old")
        topics.now += 61
        topics.executed("new", at=topics.now - 1)
        shown = topics.shown()
        assert (shown.ended.requests, shown.ended_total.requests) == (1, 2)
        assert shown.ended.per_s == pytest.approx(1 / shown.window.s)
        assert shown.window.s == pytest.approx(59, abs=1.1)

    def test_what_is_older_than_its_beginning_is_in_neither(self) -> None:
        topics = Topics()
        topics.executed("before", at=NOW - 61)
        assert topics.shown().ended_total.requests == 0

    def test_slices_that_come_out_of_order_are_counted_where_they_belong(self) -> None:
        topics = Topics()
        for seconds in (30, 5, 50, 17, 5):
            topics.executed(f"r{seconds}", at=NOW - seconds)
        topics.now += 20
        assert topics.shown().ended.requests == 4
        topics.now += 25
        assert topics.shown().ended.requests == 2

    def test_a_clock_ahead_of_ours_is_taken_for_now(self) -> None:
        topics = Topics()
        topics.executed("ahead", at=NOW + 3600)
        topics.now += 61
        assert topics.shown().ended.requests == 0


class TestClasses:
    @pytest.mark.parametrize(
        ("wanted", "got", "kept"),
        [
            ({}, {}, 1),
            ({"ttft_s": 0.3}, {"ttft_s": 0.2}, 1),
            ({"ttft_s": 0.3}, {"ttft_s": 0.4}, 0),
            ({"tpot_s": 0.005}, {}, 0),
            ({"deadline": NOW + 0.5}, {"finish_s": 1.0}, 0),
        ],
    )
    def test_an_answer_is_held_against_what_its_own_request_wanted(
        self, wanted: Any, got: Any, kept: int
    ) -> None:
        topics = Topics()
        topics.placed("a", **wanted)
        topics.executed("a", **got)
        chat = of_class(topics.shown())
        assert (chat.judged, chat.kept) == (1, kept)

    def test_what_nobody_saw_decided_is_not_judged_and_cancelled_is_no_miss(self) -> None:
        topics = Topics()
        topics.executed("unseen")
        topics.placed("b")
        topics.step("b", "cancelled", reason="cancelled")
        assert of_class(topics.shown()).attainment is None
        topics.placed("c")
        topics.step("c", "expired", reason="deadline_passed")
        assert of_class(topics.shown()).attainment == 0.0
        assert of_class(topics.shown()).without_answer == 2

    def test_quantiles_are_within_two_per_cent(self) -> None:
        topics = Topics()
        for n in range(1, 1001):
            topics.executed(f"r{n}", ttft_s=n / 1000, finish_s=n / 100)
        chat = of_class(topics.shown())
        assert chat.ttft_p50_s == pytest.approx(0.5, rel=0.02)
        assert chat.ttft_p99_s == pytest.approx(0.99, rel=0.02)
        assert chat.finish_p99_s == pytest.approx(9.9, rel=0.02)

    def test_a_class_that_only_a_rejected_request_names_is_one_of_the_others(self) -> None:
        topics = Topics()
        for n in range(20):
            topics.step(f"r{n}", "rejected", task=f"made-up-{n}", reason="unknown_task")
        topics.step("s", "rejected", reason="rate_limited")
        assert {c.task for c in topics.shown().classes} == {OTHER, "chat"}


class TestMoney:
    def test_like_is_held_against_like(self) -> None:
        topics = Topics()
        topics.placed("a", on_premium=True)
        topics.executed("a", usd=0.001)
        topics.placed("no premium pool may serve it")
        topics.executed("no premium pool may serve it", usd=0.005)
        money = topics.shown().money_total
        able = [OPTIONS.of(pool, "llama-3.1-8b-fp8") for pool in ("premium-us", "premium-eu")]
        placed = OPTIONS.of("silicon-us", "llama-3.1-8b-fp8")
        expected = premium_usd(Work(1000, 100), placed, 0.001, able)
        assert money.usd == pytest.approx(0.006)
        assert (money.compared, money.compared_usd) == (1, pytest.approx(0.001))
        assert money.premium_estimate_usd == pytest.approx(expected)
        assert money.saving == pytest.approx(1 - 0.001 / money.premium_estimate_usd)

    def test_several_answers_are_held_against_as_many(self) -> None:
        topics = Topics()
        usage = {"input_tokens": 3000, "output_tokens": 6000}
        topics.placed("a", on_premium=True, prompts=3, replies=20)
        topics.executed("a", usd=0.001, usage=usage)
        able = [OPTIONS.of(pool, "llama-3.1-8b-fp8") for pool in ("premium-us", "premium-eu")]
        placed = OPTIONS.of("silicon-us", "llama-3.1-8b-fp8")
        expected, as_one = (
            premium_usd(Work(3000, 6000, 0, *counts), placed, 0.001, able)
            for counts in ((3, 20), (1, 1))
        )
        shown = topics.shown().money_total.premium_estimate_usd
        assert shown == pytest.approx(expected)
        assert shown != pytest.approx(as_one, rel=0.01)

    def test_a_release_for_a_whole_batch_says_nothing_of_its_first_member(self) -> None:
        topics, other = Topics(), Topics()
        candidate = PLACEMENT | {"pool": "premium-us", "path": "batch", "cost_usd": 0.4}
        for each in (topics, other):
            each.placed("a", on_premium=each is topics)
        topics.step("a", "released", profile=PROFILE)
        other.step("a", "released", profile=PROFILE, candidates=[candidate])
        for each in (topics, other):
            each.executed("a")
        assert topics.shown().money_total.compared == 1
        assert other.shown().money_total.compared == 0
        assert of_class(topics.shown()).attainment == 1.0

    def test_what_ran_nowhere_that_is_declared_is_not_compared(self) -> None:
        topics = Topics()
        for name, changes in (
            ("a", {"placement": PLACEMENT | {"pool": "gone"}}),
            ("b", {"placement": PLACEMENT | {"pool": "silicon-us", "model_variant": "gone"}}),
            ("c", {"usage": None}),
        ):
            topics.placed(name, on_premium=True)
            topics.executed(name, **changes)
        money = topics.shown().money_total
        assert (money.usd, money.compared) == (pytest.approx(0.003), 0)

    def test_it_is_told_per_hour(self) -> None:
        topics = Topics()
        topics.executed("a", usd=0.5)
        shown = topics.shown()
        assert shown.money.usd_per_hour == pytest.approx(0.5 * 3600 / shown.window.s)


class TestFallbacks:
    def test_it_is_told_where_a_request_went_then(self) -> None:
        topics = Topics()
        topics.fell_back("a", "premium-us")
        assert topics.shown().fallbacks[0].to_pool is None
        topics.step("a", "placed", attempt=2, placement=PLACEMENT | {"pool": "premium-eu"})
        (fallback,) = topics.shown().fallbacks
        assert (fallback.from_pool, fallback.to_pool) == ("premium-us", "premium-eu")
        assert of_pool(topics.shown(), "premium-us").fallbacks == 1

    def test_the_newest_stands_first(self) -> None:
        topics = Topics()
        for name in "ab":
            topics.fell_back(name, "p")
        assert [f.request_id for f in topics.shown().fallbacks] == ["b", "a"]


class TestHostileAndLarge:
    @pytest.mark.parametrize(
        "value", [b"", b"\xff", b"[]", b"{}", b'{"request_id":1,"step":"placed","at":0}']
    )
    def test_what_cannot_be_read_is_counted_and_passed_over(self, value: bytes) -> None:
        topics = Topics()
        for topic in (CATALOGUE.evidence, CATALOGUE.pool_status, CATALOGUE.held):
            topics.put(topic, value)
        assert topics.shown().unreadable == 3

    def test_memory_has_a_limit_whatever_is_named(self) -> None:
        topics = Topics()
        for n in range(NAMES_MAX + 50):
            topics.step(f"r{n}", "failed", reason=f"reason-{n}")
            hold = {"group": f"g{n}|chat|batch|le512", "reason": "full", "held_s": 1, "slack_s": 1}
            topics.step(f"r{n}", "released", hold=hold, reason="full")
        total = topics.view.total
        assert len(total.refusals) == NAMES_MAX + 1
        assert total.refusals[OTHER] == 50
        assert len(total.groups) == NAMES_MAX + 1

    def test_of_what_is_on_its_way_the_oldest_is_forgotten(self) -> None:
        topics = Topics()
        topics.view._asked.update({f"r{n}": None for n in range(ASKED_MAX)})  # type: ignore[misc]
        topics.placed("new")
        assert len(topics.view._asked) == ASKED_MAX
        assert "r0" not in topics.view._asked
        assert "new" in topics.view._asked
