"""A policy or a fleet that changes while requests come, wait and are released."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hold_cases import hold
from memory_log import MemoryLog
from metrics_cases import make_metrics
from policy_change_cases import Office, fleet, policy
from stream_cases import FLEET, POLICY, START, Yard, drain, heartbeat, keys, make_options

from policies import Fleet, Policy
from shunter.audit.replay import replay_steps
from shunter.commands import policy_apply
from shunter.console import UserError
from streams.config.declarations import (
    Declarations,
    load_fleet,
    load_policy,
    published_fleet,
    text_of,
)
from streams.config.policy_follower import AGAIN_S, PolicyFollower
from streams.engine.log import Partition, Record
from streams.live.page import LivePage
from streams.live.rows import snapshot_of
from streams.metrics.gauges import target_gauges
from topics import Declared, PolicyChange, PolicyEntry, PolicyLog, Settings, encode, entry_key
from topics.admin.provisioning import AdminError

WIDE = POLICY.replace("[512, 2048]", "[2048]")
CHEAPER = """
  boards-eu:
    device: slow
    count: 1
    region: eu-west
    usd_per_hour: 0.01
    serves: [{model: yard-8b, variant: yard-8b-int8, precision: int8, max_batch: 4}]
    backend: {type: simulated, time_scale: 400.0}
"""


async def test_what_comes_after_a_change_is_decided_by_it_and_says_so() -> None:
    yard = Yard()
    office = Office(yard)
    _, transactor = await office.router()
    yard.publish(id="before")
    await drain(transactor)
    limited = POLICY + "default_tenant: {rate_per_s: 0.4}\n"
    office.change(to_policy=limited)
    for n in range(9):
        yard.publish(id=f"after-{n}")
    await drain(transactor)
    versions = {e.request_id: e.policy_version for e in yard.evidence()}
    assert versions.pop("before") == policy().version
    assert set(versions.values()) == {policy(limited).version}
    steps = [e.step for e in yard.evidence() if e.request_id != "before"]
    # The partition's share of the rate is a whole of it here, and the first counts already.
    assert (steps.count("placed"), steps.count("rejected")) == (4, 5)


async def test_each_decision_replays_under_the_version_it_names() -> None:
    yard = Yard()
    office = Office(yard)
    _, router = await office.router()
    terms = {}
    for n, text in enumerate((POLICY, WIDE, POLICY.replace("ttft_ms: 1500", "ttft_ms: 700"))):
        office.change(to_policy=text)
        terms[policy(text).version] = policy(text)
        for task in ("chat", "summarization"):
            yard.publish(id=f"{task}-{n}", task=task)
        await drain(router)
    yard.clock.at += 60
    await drain(await office.batcher())
    decisions = [e for e in yard.evidence() if e.inputs is not None]
    assert {e.step for e in decisions} == {"placed", "held", "released"}
    assert {e.policy_version for e in decisions} == terms.keys()
    found = replay_steps(decisions, lambda _, version: (yard.options, terms[str(version)]))
    assert [each.differences for each in found] == [()] * len(decisions)


async def test_a_new_pool_is_used_with_what_its_workers_said_before() -> None:
    yard = Yard()
    office = Office(yard)
    _, transactor = await office.router()
    bigger = FLEET + CHEAPER
    office.active_policy.report(heartbeat(make_options(bigger), "boards-eu", START))
    yard.publish(id="before")
    await drain(transactor)
    yard.cluster.create({t.name: t.partitions for t in yard.catalogue.pool_topics("boards-eu")})
    office.change(to_fleet=bigger)
    yard.publish(id="after")
    await drain(transactor)
    assert keys(yard.lane("premium-eu", "direct")) == ["before"]
    assert keys(yard.lane("boards-eu", "direct")) == ["after"]
    assert yard.evidence()[-1].fleet_version == fleet(bigger).version


async def test_nothing_goes_to_a_pool_that_was_taken_away() -> None:
    yard = Yard()
    hold(yard, "s1", held_at=START)
    office = Office(yard)
    transactor = await office.batcher()
    await transactor.step()
    assert not yard.evidence("released")
    smaller = fleet().model_dump(mode="json", exclude_none=True)
    del smaller["pools"]["boards-us"]
    office.active_policy.change(Declarations(Fleet.model_validate(smaller), policy()))
    yard.clock.at += 60
    await drain(transactor)
    (released,) = yard.evidence("released")
    assert released.placement is not None
    assert released.placement.pool == "premium-eu"


async def test_what_waits_is_grouped_anew() -> None:
    """Two lengths that shared no bucket share one now, and go together when that is full."""
    yard = Yard(policy=POLICY)
    for n in range(2):
        hold(yard, f"short-{n}", hints={"input_tokens": 300}, partition=0)
        hold(yard, f"long-{n}", hints={"input_tokens": 900}, partition=0)
    office = Office(yard)
    transactor = await office.batcher()
    await transactor.step()
    assert not yard.evidence("released")
    office.change(to_policy=WIDE)
    await transactor.step()
    released = yard.evidence("released")
    assert {e.batch.size for e in released if e.batch} == {4}
    assert {e.reason for e in released} == {"full"}
    assert {e.policy_version for e in released} == {policy(WIDE).version}
    assert not yard.held()


async def test_a_change_in_the_middle_of_a_transaction_waits_for_its_end() -> None:
    yard = Yard()
    office = Office(yard)

    class Meanwhile(MemoryLog):
        async def fetch(
            self, partition: Partition, offsets: Collection[int]
        ) -> Mapping[int, Record]:
            office.change(to_policy=WIDE)
            return await super().fetch(partition, offsets)

    for n in range(4):
        hold(yard, f"s{n}", partition=0)
    # Payloads are not kept, so that a release reads them between its decision and its evidence.
    transactor = await office.batcher(Meanwhile(yard.cluster), payload_bytes_max=0)
    await transactor.step()
    assert {e.policy_version for e in yard.evidence("released")} == {policy().version}
    hold(yard, "later", partition=0)
    yard.clock.at += 60
    await drain(transactor)
    assert yard.evidence()[-1].policy_version == policy(WIDE).version


async def test_what_counts_and_what_shows_follow_a_change() -> None:
    yard = Yard()
    office = Office(yard)
    metrics = make_metrics(yard)
    metrics.gauges.read_from(target_gauges(lambda: office.active_policy.situation.policy))
    page = LivePage(yard.settings, yard.options, yard.policy, yard.clock)
    office.active_policy.tell(metrics.change)
    office.active_policy.tell(page.change)
    nightly = POLICY.replace("  summarization:\n", "  nightly:\n    objective: 0.97\n")
    office.change(to_policy=nightly, to_fleet=FLEET + CHEAPER)
    text = metrics.page("")[1].decode()
    assert 'shunter_slo_target_ratio{task="nightly"} 0.97' in text
    assert 'shunter_slo_target_ratio{task="chat"} 0.9' in text
    assert 'outcome="missed",task="nightly"' in text.replace(" ", "")
    shown = snapshot_of(page.on_demand._view, START, is_current=True)
    assert "boards-eu" in {pool.pool for pool in shown.pools}


class Topic:
    """The policies topic as one router reads it."""

    def __init__(self) -> None:
        self.yard = Yard()
        self.office = Office(self.yard)
        self.missing: list[str] = []
        own = Declarations(fleet(), policy())
        self.follower = PolicyFollower(
            self.yard.settings, self.office.active_policy, own, self._check, self.yard.clock
        )
        self.offset = 0

    async def _check(self, pools: Collection[str]) -> None:
        if wanted := [pool for pool in pools if pool in self.missing]:
            raise AdminError(f"no topics of {wanted}")

    async def publish(self, *entries: PolicyEntry | bytes) -> None:
        for entry in entries:
            value = entry if isinstance(entry, bytes) else encode(entry)
            where = Partition(self.yard.catalogue.policies, 0)
            self.follower.take(Record(where, self.offset, b"", value, [], 0))
            self.offset += 1
        await self.follower.settle()

    @property
    def stands(self) -> tuple[str, str]:
        here = self.office.active_policy
        versions = (
            here.terms.evidence_writer.policy_version,
            here.terms.evidence_writer.fleet_version,
        )
        assert versions == (here.situation.policy.version, here.situation.options.version)
        return str(versions[0]), str(versions[1])


def declared(what: Policy | Fleet, **changes: Any) -> PolicyEntry:
    kind: Any = "fleet" if isinstance(what, Fleet) else "policy"
    found = Declared(kind, what.version, text_of(what), START, "a test")
    return PolicyEntry(declared=replace(found, **changes))


def changed(number: int, **state: str) -> PolicyEntry:
    return PolicyEntry(change=PolicyChange(number, "apply", START, "a test", **state))


OWN = (policy().version, fleet().version)


async def test_the_last_change_counts_and_what_it_leaves_open_is_the_process_s_own() -> None:
    topic = Topic()
    assert topic.stands == OWN
    wide, bigger = policy(WIDE), fleet(FLEET + CHEAPER)
    await topic.publish(declared(wide), changed(1, policy=wide.version))
    assert topic.stands == (wide.version, OWN[1])
    both = {"policy": wide.version, "fleet": bigger.version}
    await topic.publish(declared(bigger), changed(2, **both))
    assert topic.stands == (wide.version, bigger.version)
    await topic.publish(changed(3))
    assert topic.stands == OWN


WIDE_POLICY = policy(WIDE)
UNUSABLE = {
    "bad": (declared(WIDE_POLICY, text="classes: {}"), changed(1, policy=WIDE_POLICY.version)),
    "of a newer Shunter": (
        declared(WIDE_POLICY, text=text_of(WIDE_POLICY)[:-1] + ', "canary": 0.1}'),
        changed(1, policy=WIDE_POLICY.version),
    ),
    "of another digest": (
        declared(WIDE_POLICY, version="000000000000"),
        changed(1, policy="000000000000"),
    ),
    "not there": (changed(1, policy=WIDE_POLICY.version),),
    "a change of a newer Shunter": (
        declared(WIDE_POLICY),
        encode({"change": {"number": 1, "action": "apply", "at": 1.0, "by": "x", "canary": 0.1}}),
    ),
    "a change in no known way": (
        declared(WIDE_POLICY),
        encode({"change": {"number": 1, "action": "split", "at": 1.0, "by": "x"}}),
    ),
    "not a record": (b'{"change": ',),
    "nothing": (b"{}",),
}


@pytest.mark.parametrize("entries", UNUSABLE.values(), ids=UNUSABLE)
async def test_what_cannot_be_used_is_told_of_once_and_what_stood_stays(
    entries: tuple[PolicyEntry | bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic()
    await topic.publish(*entries[:-1])
    caplog.clear()
    with caplog.at_level(logging.INFO, "streams.config.policy_follower"):
        await topic.publish(entries[-1])
        await topic.follower.settle()
    assert topic.stands == OWN
    (told,) = caplog.messages
    assert "refused" in told
    assert f"policy {OWN[0]} with fleet {OWN[1]} stays" in told
    # And it can be mended.
    await topic.publish(declared(WIDE_POLICY), changed(2, policy=WIDE_POLICY.version))
    assert topic.stands == (WIDE_POLICY.version, OWN[1])


async def test_a_pool_without_topics_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    topic = Topic()
    topic.missing = ["boards-eu"]
    bigger = fleet(FLEET + CHEAPER)
    await topic.publish(declared(bigger), changed(1, fleet=bigger.version))
    assert topic.stands == OWN
    topic.yard.clock.at += AGAIN_S
    await topic.follower.settle()
    told = [m for m in caplog.messages if "no topics of ['boards-eu']" in m]
    assert len(told) == 1, "told once, though tried twice"
    topic.missing = []
    topic.yard.clock.at += AGAIN_S
    await topic.follower.settle()
    assert topic.stands == (OWN[0], bigger.version)


async def test_a_router_that_starts_stands_where_one_stands_that_was_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last change that it can use counts, and not its own files, if the newest is refused."""
    entries = [
        declared(WIDE_POLICY),
        changed(1, policy=WIDE_POLICY.version),
        changed(2, policy="damaged", fleet="damaged"),
        changed(3, policy="damaged"),
    ]
    there, started = Topic(), Topic()
    for entry in entries:
        await there.publish(entry)
    await started.publish(*entries)
    assert there.stands == started.stands == (WIDE_POLICY.version, OWN[1])
    caplog.clear()
    await started.follower.settle()
    assert not caplog.messages, "each is told of once"
    # A rollback to the time before the first is a change as well.
    await started.publish(changed(4))
    assert started.stands == OWN


async def test_a_router_waits_for_topics_with_the_last_change_that_it_can_make() -> None:
    bigger, topic = fleet(FLEET + CHEAPER), Topic()
    topic.missing = ["boards-eu"]
    wide = {"policy": WIDE_POLICY.version}
    await topic.publish(
        *(declared(WIDE_POLICY), changed(1, **wide)),
        *(declared(bigger), changed(2, fleet=bigger.version, **wide)),
    )
    assert topic.stands == (WIDE_POLICY.version, OWN[1])
    topic.missing = []
    topic.yard.clock.at += AGAIN_S
    await topic.follower.settle()
    assert topic.stands == (WIDE_POLICY.version, bigger.version)


class Desk:
    """Somebody who applies, on a topic that others write to at the same time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[bytes] = []
        self.settings = Settings()
        monkeypatch.setattr(policy_apply, "read_policy_log", self._read)
        monkeypatch.setattr(policy_apply, "publish_entries", self._publish)

    async def _read(self, settings: Settings) -> PolicyLog:
        return self.said()

    async def _publish(self, settings: Settings, entries: Sequence[PolicyEntry]) -> None:
        self.log += map(encode, entries)

    def said(self) -> PolicyLog:
        said = PolicyLog()
        for value in self.log:
            said.add(value)
        return said

    def apply(self, known: PolicyLog, by: str, **state: str) -> None:
        change = replace(policy_apply.next_change(known, "apply", by), **state)
        policy_apply.publish_change(self.settings, known, change, [])


def test_of_two_that_apply_at_once_the_one_that_is_undone_and_the_one_that_undid_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(monkeypatch)
    desk.apply(desk.said(), "ann", policy="a")
    read = desk.said()
    desk.apply(read, "bob", policy="b")
    with pytest.raises(UserError, match=r"change 2 on .* is in force, and undid change 2 by bob"):
        desk.apply(read, "eve", fleet="f")

    async def ann_was_as_quick(settings: Settings) -> PolicyLog:
        desk.log.append(encode(PolicyEntry(change=PolicyChange(3, "apply", START, "ann"))))
        return desk.said()

    monkeypatch.setattr(policy_apply, "read_policy_log", ann_was_as_quick)
    with pytest.raises(UserError, match=r"is not in force: change 3 by ann .* just after it"):
        desk.apply(desk.said(), "bob", policy="b")
    changes = desk.said().changes
    assert [each.number for each in changes] == [1, 2, 2, 3, 3]
    keys = {entry_key(PolicyEntry(change=each)) for each in changes}
    assert len(keys) == len(changes), "compaction keeps both of a number"


def test_a_rollback_to_the_policy_in_the_shadow_leaves_no_policy_in_its_own_shadow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk, old, new = Desk(monkeypatch), policy(), policy(WIDE)
    desk.log += [encode(declared(each)) for each in (old, new)]
    desk.apply(desk.said(), "ann", policy=old.version)
    desk.apply(desk.said(), "ann", policy=new.version, shadow=old.version)
    policy_apply.rollback(None, "ann", None, None)
    (*_, last) = desk.said().changes
    assert (last.action, last.policy, last.shadow) == ("rollback", old.version, None)


def test_what_was_before_is_the_newest_that_was_another() -> None:
    said = PolicyLog()
    states: list[tuple[dict[str, str], int | None]] = [
        ({"policy": "a"}, None),
        ({"policy": "b"}, 1),
        ({"policy": "b", "shadow": "c"}, 1),
        ({"policy": "b", "fleet": "f"}, 3),
    ]
    for number, (state, previous) in enumerate(states, start=1):
        said.add(encode(changed(number, **state)))
        found = None if said.previous is None else said.previous.number
        assert found == previous


def test_a_published_declaration_is_complete_and_reads_as_the_same_version() -> None:
    packaged = load_fleet(None)
    assert policy(text_of(load_policy(None))).version == load_policy(None).version
    said = PolicyLog()
    said.add(encode(declared(packaged)))
    # Without the packaged devices and models that its file leans on.
    found = published_fleet(said, packaged.version)
    assert (found.version, found.model_dump()) == (packaged.version, packaged.model_dump())
