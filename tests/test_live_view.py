"""The live view: what evidence, heartbeats and the hold are folded into."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from policies import compile_options
from streams.declarations import load_fleet, load_policy
from streams.live import LiveView, Snapshot, snapshot_of
from streams.live.histogram import Histogram
from streams.live.tally import NAMES_MAX, OTHER
from streams.live.view import ASKED_MAX
from streams.log import Partition, Record
from topics import Catalogue, PoolStatus, Settings, encode
from topics import headers as h
from topics.status import VariantStatus

CATALOGUE = Catalogue(Settings())
OPTIONS, POLICY = compile_options(load_fleet(None)), load_policy(None)
NOW = 1_000_000.0


class Topics:
    """Feeds a view with records as its topics would have them."""

    def __init__(self, **options: Any) -> None:
        self.now = NOW
        self.view = LiveView(CATALOGUE, OPTIONS, POLICY, since=NOW - 60, **options)

    def put(self, topic: str, value: bytes | None, key: str = "k", headers: Any = ()) -> None:
        ms = int(self.now * 1000)
        self.view.take(Record(Partition(topic, 0), 0, key.encode(), value, headers, ms), self.now)

    def step(self, request_id: str, step: str, at: float | None = None, **fields: Any) -> None:
        evidence = {
            "request_id": request_id,
            "step": step,
            "at": self.now if at is None else at,
            "writer": "w",
            "source": {"topic": "t", "partition": 0, "offset": 0},
            "task": "chat",
        }
        self.put(CATALOGUE.evidence, orjson.dumps(evidence | fields))

    def placed(self, request_id: str, *, premium_usd: float | None = None, **wanted: Any) -> None:
        profile = {"created_at": self.now, "deadline": self.now + 60} | wanted
        direct = {"model_variant": "v", "precision": "fp8", "region": "r", "path": "direct"}
        candidates = [direct | {"pool": "silicon-us", "cost_usd": 0.0001}]
        if premium_usd is not None:
            candidates.append(direct | {"pool": "premium-us", "cost_usd": premium_usd})
            candidates.append(direct | {"pool": "premium-eu", "cost_usd": 2 * premium_usd})
            refused = {"pool": "premium-us", "refused": "lane"}
            candidates.append(direct | refused)
        self.step(request_id, "placed", profile=profile, candidates=candidates)

    def executed(
        self,
        request_id: str,
        *,
        ttft_s: float = 0.1,
        finish_s: float = 1.0,
        usd: float = 0.001,
        path: str = "direct",
        **fields: Any,
    ) -> None:
        got = {"cost_usd": usd, "ttft_s": ttft_s, "finish_s": finish_s, "tpot_s": 0.01}
        placement = {"pool": "silicon-us", "path": path}
        self.step(request_id, "executed", got=got, placement=placement, **fields)

    def hold(self, request_id: str, group: str = "m|chat|batch|le512", **changes: Any) -> None:
        profile = {"deadline": self.now + 600, "window_s": 30.0, "batchable": True} | changes
        headers = [
            (h.PROFILE, orjson.dumps(profile)),
            (h.GROUP, group.encode()),
            (h.HELD_AT, repr(self.now).encode()),
        ]
        self.put(CATALOGUE.held, b"the payload", request_id, headers)

    def shown(self) -> Snapshot:
        return snapshot_of(self.view, self.now)


def of_class(snapshot: Snapshot, task: str = "chat") -> Any:
    return next(c for c in snapshot.classes if c.task == task)


def of_pool(snapshot: Snapshot, pool: str) -> Any:
    return next(p for p in snapshot.pools if p.pool == pool)


class TestEnds:
    def test_each_end_counts_once_under_the_status_of_its_result(self) -> None:
        topics = Topics()
        topics.placed("a")
        topics.executed("a")
        topics.step("b", "rejected", reason="no_pool")
        topics.step("c", "expired", reason="deadline_passed")
        topics.step("d", "fell_back", fallback={"pool": "x"}, reason="timeout")
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
        topics.placed("a", premium_usd=0.004)
        topics.executed("a", usd=0.001)
        topics.placed("no premium pool may serve it")
        topics.executed("no premium pool may serve it", usd=0.005)
        money = topics.shown().money_total
        assert money.usd == pytest.approx(0.006)
        assert (money.compared, money.compared_usd) == (1, pytest.approx(0.001))
        assert money.premium_estimate_usd == pytest.approx(0.004)
        assert money.saving == pytest.approx(0.75)

    def test_a_release_for_a_whole_batch_says_nothing_of_its_first_member(self) -> None:
        topics = Topics()
        topics.placed("a", premium_usd=0.004)
        candidate = {"pool": "premium-us", "path": "batch", "cost_usd": 0.4}
        profile = {"created_at": 0, "deadline": 0}
        topics.step("a", "released", profile=profile, candidates=[candidate])
        topics.executed("a")
        assert topics.shown().money_total.premium_estimate_usd == pytest.approx(0.004)
        assert of_class(topics.shown()).attainment == 1.0

    def test_it_is_told_per_hour(self) -> None:
        topics = Topics()
        topics.executed("a", usd=0.5)
        shown = topics.shown()
        assert shown.money.usd_per_hour == pytest.approx(0.5 * 3600 / shown.window.s)


class TestPools:
    def status(self, pool: str = "silicon-us", instance: str = "w", **changes: Any) -> PoolStatus:
        status = PoolStatus(pool, instance, NOW, "up", 1.0, "d", "r", 100, 25, 3, 1.5)
        return replace(status, **changes)

    def put(self, topics: Topics, status: PoolStatus) -> None:
        topics.put(CATALOGUE.pool_status, encode(status))

    def test_workers_of_a_pool_are_added_up(self) -> None:
        topics = Topics()
        variants = {"v": VariantStatus(speed=1.2), "w": VariantStatus(circuit="open")}
        self.put(topics, self.status(variants=variants))
        self.put(topics, self.status(instance="x", backlog_s=0.5, running=75))
        pool = of_pool(topics.shown(), "silicon-us")
        assert (pool.workers, pool.slots, pool.running, pool.queued) == (2, 200, 100, 6)
        assert (pool.load, pool.backlog_s) == (0.5, 0.5)
        assert (pool.speed["v"], pool.circuits) == (1.2, {"w": "open"})

    def test_the_newest_heartbeat_counts_and_a_silent_worker_is_none(self) -> None:
        topics = Topics()
        self.put(topics, self.status())
        self.put(topics, self.status(state="draining"))
        assert of_pool(topics.shown(), "silicon-us").state == "draining"
        topics.now += 4.5
        pool = of_pool(topics.shown(), "silicon-us")
        assert (pool.state, pool.workers, pool.device) == ("none", 0, "maia-200")

    def test_each_declared_pool_is_shown_and_one_that_only_reports_too(self) -> None:
        topics = Topics()
        self.put(topics, self.status("stranger"))
        assert {p.pool for p in topics.shown().pools} == {*OPTIONS.by_pool, "stranger"}

    def test_answers_and_busy_device_time_are_those_of_the_pool(self) -> None:
        topics = Topics()
        self.put(topics, self.status(replicas=2))
        price = OPTIONS.by_pool["silicon-us"][0].usd_per_s
        topics.executed("a", usd=price * 30)
        topics.executed("b", usd=price * 30, path="batch")
        shown = topics.shown()
        pool = of_pool(shown, "silicon-us")
        assert (pool.direct, pool.batch, pool.total_batch) == (1, 1, 1)
        # A minute of one replica, of the two that there are.
        assert pool.busy == pytest.approx(60 / shown.window.s / 2)

    def test_a_worker_that_was_silent_for_hours_is_forgotten(self) -> None:
        topics = Topics()
        self.put(topics, self.status("stranger"))
        topics.now += 3601
        self.put(topics, self.status(at=topics.now))
        assert topics.view.workers.pools() == {"silicon-us"}


class TestHolds:
    def test_a_group_has_its_members_until_their_tombstones(self) -> None:
        topics = Topics()
        topics.hold("a")
        topics.now += 10
        topics.hold("b")
        (group,) = topics.shown().holds.groups
        assert (group.held, group.oldest_s, group.release_in_s) == (2, 10, 20)
        assert group.fill == 2 / POLICY.windows.members_max
        topics.put(CATALOGUE.held, None, "a")
        (group,) = topics.shown().holds.groups
        assert (group.held, group.oldest_s, group.release_in_s) == (1, 0, 30)
        topics.put(CATALOGUE.held, None, "b")
        topics.put(CATALOGUE.held, None, "never held")
        assert topics.shown().holds.held == 0

    def test_one_held_again_is_held_once(self) -> None:
        topics = Topics()
        topics.hold("a")
        topics.hold("a", "other|chat|batch|le512")
        (group,) = topics.shown().holds.groups
        assert (topics.shown().holds.held, group.model) == (1, "other")

    def test_the_name_of_a_group_is_taken_apart(self) -> None:
        topics = Topics()
        topics.hold("a", 'm|chat|direct|lemore|[["eu"],null,null,["p"],[["cooling","air"]],0.5]')
        (group,) = topics.shown().holds.groups
        assert (group.model, group.operation, group.is_batch) == ("m", "chat", False)
        assert group.prompt_tokens_max is None
        assert group.constraints == {
            "regions": ["eu"],
            "exclude_pools": ["p"],
            "labels": {"cooling": "air"},
            "max_cost_usd": 0.5,
        }

    @pytest.mark.parametrize(
        "name", ["", "m", "m|c|batch|x|{", "m|c|batch|le5|7", "m|c|b|l|[0,0,0,0,1]"]
    )
    def test_a_group_of_another_version_is_shown_by_its_name(self, name: str) -> None:
        topics = Topics()
        topics.hold("a", name)
        (group,) = topics.shown().holds.groups
        assert (group.group, group.held) == (name, 1)
        assert "labels" not in group.constraints

    def test_what_left_is_told_with_its_batches_and_reasons(self) -> None:
        topics = Topics()
        for index in range(3):
            batch = {"id": "b", "index": index, "size": 3}
            hold = {"group": "m|chat|batch|le512", "reason": "full", "held_s": 1, "slack_s": 1}
            topics.step(f"r{index}", "released", hold=hold, batch=batch, reason="full")
        (group,) = topics.shown().holds.groups
        assert (group.released, group.batches, group.reasons) == (3, 1, {"full": 3})

    def test_beyond_its_limit_it_says_what_it_leaves_out(self) -> None:
        topics = Topics(held_records_max=2)
        for name in "abc":
            topics.hold(name)
        assert (topics.shown().holds.held, topics.shown().holds.left_out) == (2, 1)


class TestFallbacks:
    def test_it_is_told_where_a_request_went_then(self) -> None:
        topics = Topics()
        topics.step("a", "fell_back", fallback={"pool": "premium-us"}, reason="timeout")
        assert topics.shown().fallbacks[0].to_pool is None
        placement = {"pool": "premium-eu", "path": "direct"}
        topics.step("a", "placed", attempt=2, placement=placement)
        (fallback,) = topics.shown().fallbacks
        assert (fallback.from_pool, fallback.to_pool) == ("premium-us", "premium-eu")
        assert of_pool(topics.shown(), "premium-us").fallbacks == 1

    def test_the_newest_stands_first(self) -> None:
        topics = Topics()
        for name in "ab":
            topics.step(name, "fell_back", fallback={"pool": "p"}, reason="timeout")
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
            hold = {"group": f"g{n}|chat|batch|le512"}
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

    def test_a_histogram_takes_any_number(self) -> None:
        histogram = Histogram()
        assert histogram.quantile(0.5) is None
        for value in (0.0, -1.0, 1e-9, 1e9):
            histogram.add(value)
        assert histogram.quantile(1.0) == pytest.approx(1e9, rel=0.02)
        assert histogram.quantile(0.0) == histogram.quantile(0.5)
