"""Live migration: which replies move to another replica, and what becomes of them."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from accelerator_cases import LLAMA_8B, SMALL, VARIANTS
from backtest_cases import FLEET, POLICY, replay, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import FLEET as FLEET_YAML
from stream_cases import make_fleet, make_options, make_policy, make_profile

from policies import Option, compile_options
from policies.backtest.fault_model import Outage, Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replica_pool import ModelPool, Try, TryEnded
from policies.config.fleet import SimulatedBackendConfig
from policies.hardware.accelerator import (
    Cancelled,
    Completion,
    Event,
    FirstToken,
    Job,
    Moved,
    VariantLimits,
)
from policies.hardware.answering import AnsweringReplica
from policies.hardware.migration import COPY_BYTES_PER_S, LOOK_S, Migration
from policies.hardware.pool_fill import PoolFill
from policies.hardware.replica import Ask, Replica
from policies.learning.device_constants import Measured
from policies.learning.device_speed import Pace
from shunter.backtest.bound import bound_or_reason
from shunter.backtest.suite import Setting, migrating, scaled

ROOMY = {"llama": VariantLimits(LLAMA_8B, 64), "small": VariantLimits(SMALL, 64)}
STEP_S = LLAMA_8B.step_s(1, 500)


class MovingPool:
    """Replicas whose replies move, each event with the replica that told it."""

    def __init__(self, replicas: int = 2, variants: dict[str, VariantLimits] = ROOMY) -> None:
        self.replicas = [AnsweringReplica(variants) for _ in range(replicas)]
        self.migration = Migration(self.replicas, PoolFill())
        self.where: dict[str, int] = {}
        self.told: list[tuple[int, Event]] = []

    def submit(self, name: str, index: int, now: float, **changes: object) -> None:
        job = Job(name, "llama", 500, 400)
        self.where[name] = index
        self.replicas[index].submit(replace(job, **changes), now)  # type: ignore[arg-type]

    def cancel(self, name: str, now: float) -> None:
        self.replicas[self.where[name]].cancel(name, now)

    def run(self, until: float = 1e4) -> None:
        """Run from event to event, and from look to look."""
        now = 0.0
        while True:
            due = [each.accelerator.next_event_at() for each in self.replicas]
            found = [at for at in (*due, self.migration.due_at(now)) if at is not None]
            if not found or min(found) > until:
                return
            now = max(now, min(found))
            self.step(now)

    def step(self, now: float) -> None:
        for index, each in enumerate(self.replicas):
            for event in each.advance(now):
                self.told.append((index, event))
                target = self.migration.note(event, now)
                if target is not None:
                    self.where[event.id] = target
        self.migration.look(now)

    def events(self, kind: type[Event]) -> Iterator[Event]:
        return (event for _, event in self.told if isinstance(event, kind))

    def running(self) -> list[int]:
        return [each.accelerator.running for each in self.replicas]


def test_a_lone_reply_goes_on_in_company_and_writes_all_its_tokens() -> None:
    pool = MovingPool()
    for number in range(4):
        pool.submit(f"one{number}", 0, 0.0)
    pool.submit("lone", 1, 0.0, output_tokens=600)
    pool.run(until=0.5)
    assert pool.running() == [5, 0]
    (moved,) = pool.events(Moved)
    assert moved.id == "lone"
    pool.run()
    (lone,) = (e for e in pool.events(Completion) if e.id == "lone")
    busy_s = sum(each.accelerator.busy_s for each in pool.replicas)
    shares_s = [event.device_s for event in pool.events(Completion)]
    assert sum(shares_s) == pytest.approx(busy_s)
    steps = sum(each.accelerator.decoded[1] for each in pool.replicas)
    assert steps == 4 * 399 + 599
    first = next(e for e in pool.events(FirstToken) if e.id == "lone")
    assert (lone.first_token_at, lone.started_at) == (first.at, 0.0)
    assert lone.finished_at >= lone.first_token_at + 599 * STEP_S


def test_it_leaves_when_its_memory_is_copied_and_one_after_the_other() -> None:
    pool = MovingPool()
    for number in range(4):
        pool.submit(f"one{number}", 0, 0.0, input_tokens=12_000)
    for number in range(2):
        pool.submit(f"long{number}", 1, 0.0, input_tokens=20_000)
    pool.run()
    begun_at = max(e.at for e in pool.events(FirstToken) if e.id.startswith("long"))
    first, second = (event.at for event in pool.events(Moved))
    copy_s = 20_000 * LLAMA_8B.kv_bytes_per_token / COPY_BYTES_PER_S
    assert copy_s > 5 * LOOK_S
    assert begun_at + copy_s <= first <= begun_at + copy_s + 4 * LOOK_S
    assert first + 0.9 * copy_s <= second <= first + copy_s + 4 * LOOK_S


def test_prompts_and_what_decodes_beside_them_stay() -> None:
    pool = MovingPool()
    for number in range(4):
        pool.submit(f"one{number}", 0, 0.0)
    pool.submit("lone", 1, 0.0)
    pool.submit("long", 1, 0.0, input_tokens=100_000)
    pool.run(until=1.0)
    assert "long" not in {event.id for event in pool.events(FirstToken)}
    assert "lone" not in {event.id for event in pool.events(Moved)}


def test_nothing_moves_where_a_tpot_would_not_hold() -> None:
    pool = MovingPool()
    for number in range(4):
        pool.submit(f"one{number}", 0, 0.0, tpot_s=1.2 * STEP_S)
    pool.submit("lone", 1, 0.0, tpot_s=1.2 * STEP_S)
    pool.run()
    assert not list(pool.events(Moved))


def test_nothing_moves_where_the_memory_or_the_places_are_taken() -> None:
    for variants, tokens in (
        ({"llama": VariantLimits(LLAMA_8B, 2)}, 400),
        (VARIANTS, 3_500),
    ):
        pool = MovingPool(variants=variants)
        pool.submit("one", 0, 0.0, output_tokens=tokens)
        pool.submit("two", 0, 0.0, output_tokens=tokens)
        pool.submit("lone", 1, 0.0, output_tokens=tokens)
        pool.run(until=0.9 * tokens * STEP_S)
        assert pool.running() == [2, 1]
        assert not list(pool.events(Moved))


def test_a_rare_variant_finds_company_and_a_common_one_keeps_its_replica() -> None:
    for rare, moves in ((2, True), (10, False)):
        pool = MovingPool()
        for number in range(12):
            pool.submit(f"l{number}", 0, 0.0)
        for number in range(rare):
            pool.submit(f"s{number}", 1, 0.0, variant="small")
        pool.run(until=0.3)
        assert bool(list(pool.events(Moved))) is moves
        assert pool.running() == ([14, 0] if moves else [12, 10])


def test_few_move_to_many_and_not_the_other_way() -> None:
    pool = MovingPool(3)
    for index, count in enumerate((6, 4, 2)):
        for number in range(count):
            pool.submit(f"{index}-{number}", index, 0.0)
    pool.run(until=0.3)
    assert pool.running() == [12, 0, 0]
    assert {event.id[0] for event in pool.events(Moved)} == {"1", "2"}


def test_a_place_and_a_tpot_are_kept_for_one_that_is_expected() -> None:
    replica = Replica({"llama": VariantLimits(LLAMA_8B, 2)})
    replica.submit(Job("one", "llama", 500, 400), 0.0)
    replica.advance(0.1)
    coming = Job("coming", "llama", 500, 400, tpot_s=1.2 * STEP_S)
    replica.expect(coming, 0.1)
    assert not replica.accelerator.has_room("llama", 1)
    replica.submit(Job("next", "llama", 500, 400), 0.1)
    replica.advance(0.2)
    assert (replica.accelerator.running, replica.accelerator.queued) == (1, 1)
    replica.no_longer_expect(coming, 0.2)
    replica.advance(0.3)
    assert (replica.accelerator.running, replica.accelerator.queued) == (2, 0)
    roomy = Replica(ROOMY)
    roomy.submit(Job("one", "llama", 500, 400), 0.0)
    roomy.advance(0.1)
    ask = Ask("llama", 40_000, 400)
    assert roomy.can_take(ask, 0.1)
    roomy.expect(coming, 0.1)
    assert not roomy.can_take(ask, 0.1)
    roomy.no_longer_expect(coming, 0.1)
    assert roomy.can_take(ask, 0.1)


class ModelledPool:
    """A pool of the backtest on which a chat moves to where others have ended."""

    def __init__(self, until_tokens: int) -> None:
        option = make_options().of("premium-eu", "yard-8b-fp8")
        changes = {"replicas": 2, "max_batch": 5, "latency_s": 0.0, "migrates": True}
        self.option = replace(option, time_scale=1.0, **changes)
        self.pool = ModelPool([self.option], Reality(), random.Random(0).random)
        self.now, self.ended = 0.0, list[TryEnded]()
        self.tries = [self.submit(row, until_tokens if row < 2 else 2_000) for row in range(6)]

    def submit(self, row: int, output_tokens: int) -> Try:
        made = make_profile(make_policy(), id=f"c{row}", hints={"input_tokens": 300})
        profile = replace(made, created_at=0.0, ttft_s=10.0, tpot_s=None)
        attempt = Try(ReplayOutcome(row, profile, 300, output_tokens), self.option, "direct", None)
        self.pool.submit(attempt, 0.0)
        return attempt

    def run(self, until: float) -> None:
        while self.now < until and not self.pool.is_idle:
            self.pool.migrate(self.now)
            list(self.pool.start(self.now))
            due = [self.pool.due_at(index) for index in range(2)]
            due.append(self.pool.look_at(self.now))
            self.now = min(until, *(at for at in due if at is not None))
            for index in range(2):
                self.ended += self.pool.advance(index, self.now)


def test_a_reply_is_lost_with_the_replica_on_which_it_is() -> None:
    modelled = ModelledPool(60)
    modelled.run(until=1.0)
    assert modelled.pool.migrations == 1
    assert [attempt.replica for attempt in modelled.tries] == [0] * 6
    modelled.pool.lose(0, modelled.now)
    modelled.run(until=2.0)
    lost = {ended.attempt.outcome.row for ended in modelled.ended if ended.reason}
    assert lost == {2, 3, 4, 5}


def test_the_company_that_is_learned_of_is_that_of_all_replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: dict[str, Measured] = {}

    def learn(_: Pace, __: Option, job: Job, took: Measured, ___: float) -> None:
        found[job.id] = took

    monkeypatch.setattr(Pace, "learn", learn)
    modelled = ModelledPool(1_000)
    modelled.run(until=100.0)
    assert modelled.pool.migrations == 1
    # Alone for half of its tokens, and one of four for the others.
    assert found["5"].sequences == 2
    assert found["2"].sequences in (4, 5)


def test_the_answers_of_a_request_stay_together() -> None:
    pool = MovingPool()
    for number in range(6):
        pool.submit(f"one{number}", 0, 0.0)
    pool.replicas[1].submit_answers(Job("n", "llama", 500, 400), 1, 2, 0.0)
    pool.run()
    assert not list(pool.events(Moved))
    assert {event.id for event in pool.events(Completion)} >= {"n", "one0"}


@pytest.mark.parametrize("cancelled", [False, True])
def test_one_that_ends_while_it_is_copied_leaves_its_place_free(cancelled: bool) -> None:
    pool, now = MovingPool(), 0.0
    for number in range(4):
        pool.submit(f"one{number}", 0, 0.0, input_tokens=10_000, output_tokens=4_000)
    pool.submit("lone", 1, 0.0, input_tokens=20_000, output_tokens=100 if cancelled else 5)
    there = pool.replicas[0].accelerator
    kept_bytes = _free_bytes(4, 14_000)
    while there.kv_free_bytes > kept_bytes - 1:
        now += LOOK_S / 2
        pool.run(until=now)
        assert now < 5.0
    if cancelled:
        pool.cancel("lone", now)
    pool.run(until=now + 0.1)
    assert not list(pool.events(Moved))
    assert [e.id for e in pool.events(Cancelled if cancelled else Completion)] == ["lone"]
    assert there.kv_free_bytes == pytest.approx(kept_bytes)
    pool.run()


def _free_bytes(sequences: int, tokens: int) -> float:
    replica = Replica(ROOMY)
    return replica.accelerator.kv_free_bytes - sequences * tokens * LLAMA_8B.kv_bytes_per_token


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_job_ends_once_and_all_shares_are_the_busy_time(seed: int) -> None:
    draw = random.Random(seed)
    tight = draw.random() < 0.5
    pool = MovingPool(3, dict(VARIANTS) if tight else ROOMY)
    calls: list[tuple[float, str, int | None]] = []
    for number in range(draw.choice([5, 25])):
        at = draw.uniform(0.0, 0.5)
        calls.append((at, str(number), draw.randrange(3)))
        if draw.random() < 0.2:
            calls.append((at + draw.uniform(0.0, 0.5), str(number), None))
    written: dict[str, int] = {}
    for at, name, index in sorted(calls, key=lambda call: call[0]):
        pool.run(until=at)
        pool.step(at)
        if index is None:
            pool.cancel(name, at)
            continue
        written[name] = draw.choice([1, 2, 30, 300])
        pool.submit(
            name,
            index,
            at,
            variant=draw.choice(["llama", "small"]),
            input_tokens=draw.choice([10, 500, 3_000]),
            output_tokens=written[name],
            tpot_s=draw.choice([None, 0.02, 0.1]),
        )
    pool.run()
    ended = [e for _, e in pool.told if isinstance(e, Completion | Cancelled)]
    assert Counter(event.id for event in ended) == Counter(list(written))
    busy_s = sum(each.accelerator.busy_s for each in pool.replicas)
    assert sum(event.device_s for event in ended) == pytest.approx(busy_s)
    decoded = sum(each.accelerator.decoded[1] for each in pool.replicas)
    tokens = [e.output_tokens if isinstance(e, Cancelled) else written[e.id] for e in ended]
    assert decoded == sum(max(0, each - 1) for each in tokens)
    for each in pool.replicas:
        assert each.accelerator.is_idle
        assert each.accelerator.kv_usage == 0.0
        assert each.backlog_s == 0.0


def test_a_backtest_whose_replies_migrate_costs_less_and_is_above_its_bound() -> None:
    stay, _ = replay(rows=2000, rate=10.0)
    moving, options = replay(rows=2000, rate=10.0, fleet=migrating(FLEET))
    assert stay.migrations == 0 < moving.migrations
    costs = [sum(outcome.cost_usd for outcome in run.outcomes) for run in (stay, moving)]
    assert costs[1] < 0.95 * costs[0]
    assert {outcome.status for outcome in moving.outcomes} == {"completed"}
    busy_usd = sum(
        busy_s * options.by_pool[pool][0].usd_per_s for pool, busy_s in moving.busy_s.items()
    )
    assert costs[1] == pytest.approx(busy_usd)
    case = Setting(sample(2000, 10.0), scaled(migrating(FLEET), 10.0), POLICY, Reality())
    limit_usd, _ = bound_or_reason(case)
    assert limit_usd is not None
    assert limit_usd <= costs[1]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_lost_with_a_replica_is_served_elsewhere(seed: int) -> None:
    reality = Reality(
        seed=seed,
        failure_rate=0.05,
        preemptions_per_hour={"silicon-us": 3_000.0, "premium-eu": 3_000.0},
        outages=(Outage(pool="silicon-us", from_s=3.0, to_s=5.0),),
    )
    run, _ = replay(rows=1000, rate=10.0, fleet=migrating(FLEET), reality=reality)
    assert run.migrations
    assert len({outcome.row for outcome in run.outcomes}) == 1000
    assert sum(outcome.status == "completed" for outcome in run.outcomes) > 900
    assert all(outcome.status != "pending" for outcome in run.outcomes)


def test_replies_stay_unless_a_simulated_pool_is_declared_otherwise() -> None:
    usual = "type: simulated, time_scale: 20.0"
    moving = FLEET_YAML.replace(usual, "type: simulated, replies: migrate")
    for text, migrates in ((FLEET_YAML, False), (moving, True)):
        assert {o.migrates for o in make_options(text).by_pool["premium-eu"]} == {migrates}
    assert "replies" not in make_fleet().model_dump_json()
    assert SimulatedBackendConfig(replies="migrate").model_dump()["replies"] == "migrate"
    server = FLEET_YAML.replace(usual, "type: openai, base_url: 'http://server'")
    options = compile_options(migrating(make_fleet(server)))
    assert not any(option.migrates for option in options.by_pool["premium-eu"])
