"""The live view: pools and what is held."""

from dataclasses import replace
from typing import Any

import pytest
from live_cases import CATALOGUE, NOW, OPTIONS, POLICY, Topics, of_pool
from policy_cases import bulk

from policies.batching.groups import group_of
from streams.engine.clock import SystemClock
from streams.live import on_demand_view
from streams.live.rows import snapshot_of
from topics import PoolStatus, QualityEntry, Settings, VariantQuality, encode
from topics.records.heartbeat import VariantStatus


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

    def test_a_worker_of_a_wrong_clock_is_not_shown_for_ever(self) -> None:
        topics = Topics()
        self.put(topics, self.status(at=NOW + 3 * 86_400.0))
        assert of_pool(topics.shown(), "silicon-us").state == "none"
        assert topics.view.workers.newest("silicon-us") is None
        self.put(topics, self.status(instance="x"))
        assert of_pool(topics.shown(), "silicon-us").workers == 1

    def test_a_variant_counts_as_drifted_until_a_later_verdict(self) -> None:
        topics = Topics()
        for verdict, drifted in (("open", []), ("drifted", ["v"]), ("as_reference", [])):
            state = VariantQuality("silicon-us", "v", "reference", verdict=verdict)
            topics.put(CATALOGUE.quality, encode(QualityEntry(variant=state)))
            topics.put(CATALOGUE.quality, None)
            shown = topics.shown()
            assert of_pool(shown, "silicon-us").drifted == drifted
            assert not of_pool(shown, "premium-us").drifted
        assert not topics.view.unreadable

    def test_the_newest_heartbeat_counts_and_a_silent_worker_is_none(self) -> None:
        topics = Topics()
        self.put(topics, self.status())
        self.put(topics, self.status(state="draining"))
        assert of_pool(topics.shown(), "silicon-us").state == "draining"
        topics.now += 4.5
        pool = of_pool(topics.shown(), "silicon-us")
        assert (pool.state, pool.workers, pool.device) == ("none", 0, "maia-200")
        assert pool.assumed

    def test_a_worker_that_can_not_be_heard_without_kafka_is_shown_as_it_was(self) -> None:
        topics = Topics()
        self.put(topics, self.status(state="draining"))
        for gone_s, state in ((600.0, "draining"), (0.0, "none")):
            shown = snapshot_of(topics.view, topics.now + 600.5, unanswered_s=gone_s)
            pool = of_pool(shown, "silicon-us")
            assert (pool.state, pool.workers) == (state, int(state == "draining"))
            assert (shown.at, shown.unanswered_s) == (topics.now + 600.5, gone_s)
        # It was silent before Kafka was.
        shown = snapshot_of(topics.view, topics.now + 600.0, unanswered_s=590.0)
        assert of_pool(shown, "silicon-us").state == "none"

    async def test_the_page_s_view_knows_for_how_long_no_broker_has_answered(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        topics, settings = Topics(), Settings(bootstrap_servers="127.0.0.1:1")
        monkeypatch.setattr(on_demand_view, "silent_s", lambda: 12.5)
        viewed = on_demand_view.OnDemandView(settings, SystemClock(), lambda: topics.view)
        assert viewed.look().unanswered_s == 12.5
        await viewed.on_stop()

    @pytest.mark.parametrize(
        ("changes", "state"),
        [
            ({}, "up"),
            ({"device": "h100"}, "misfit"),
            ({"region": "eu-west"}, "misfit"),
            ({"device": "h100", "state": "draining"}, "draining"),
            ({"pool_version": "another"}, "up"),
        ],
    )
    def test_a_worker_that_is_not_as_declared_is_shown_as_such(
        self, changes: dict[str, Any], state: str
    ) -> None:
        topics, (first, *_) = Topics(), OPTIONS.by_pool["silicon-us"]
        declared = {"device": first.device, "region": first.region}
        self.put(topics, self.status(**(declared | changes)))
        assert of_pool(topics.shown(), "silicon-us").state == state

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

    @pytest.mark.parametrize(
        "behind", ["", "|quality 0.94", '|energy|["judged","p","v"]|drifted too']
    )
    def test_the_name_of_a_group_is_taken_apart(self, behind: str) -> None:
        topics = Topics()
        constraints = '[["eu"],null,null,["p"],[["cooling","air"]],0.5]'
        topics.hold("a", f"m|chat|direct|lemore|{constraints}{behind}")
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
        "name",
        [
            "",
            "m",
            "m|c|batch|x|{",
            "m|c|batch|le5|7",
            "m|c|b|l|[0,0,0,0,1]",
            "m|c|b|l|" + "[" * 9000,
        ],
    )
    def test_a_group_of_another_version_is_shown_by_its_name(self, name: str) -> None:
        topics = Topics()
        topics.hold("a", name)
        (group,) = topics.shown().holds.groups
        assert (group.group, group.held) == (name, 1)
        assert "labels" not in group.constraints

    def test_a_group_of_several_answers_shows_its_constraints(self) -> None:
        topics = Topics()
        limited = bulk(regions=("eu",), max_cost_usd=0.5, prompts=3, replies=5)
        topics.hold("a", group_of(limited, (512,)))
        (group,) = topics.shown().holds.groups
        assert group.constraints == {"regions": ["eu"], "max_cost_usd": 0.5}
        assert group.prompt_tokens_max == 512

    @pytest.mark.parametrize("term", ["quality 0.94", '["judged","p","v"]'])
    def test_a_group_without_constraints_has_none(self, term: str) -> None:
        topics = Topics()
        topics.hold("a", f"m|chat|batch|le512|{term}")
        (group,) = topics.shown().holds.groups
        assert (group.constraints, group.prompt_tokens_max) == ({}, 512)

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


def test_what_prefix_caches_had_is_a_share_of_the_answered_prompts() -> None:
    topics = Topics()
    assert of_pool(topics.shown(), "silicon-us").cached_share is None
    topics.placed("first")
    topics.executed("first")
    topics.placed("second")
    usage = {"input_tokens": 3000, "output_tokens": 10, "cached_tokens": 2000}
    topics.executed("second", usage=usage)
    assert of_pool(topics.shown(), "silicon-us").cached_share == 0.5
    assert of_pool(topics.shown(), "premium-us").cached_share is None
    topics.now += 3600
    assert of_pool(topics.shown(), "silicon-us").cached_share is None
