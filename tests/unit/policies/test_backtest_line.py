"""The line of a pool in the backtest: what becomes of it when the pool, or a replica, is lost."""

import random
from dataclasses import replace
from typing import Any

import pytest
from backtest_cases import asked
from stream_cases import make_fleet, make_options, make_policy, make_profile

from policies import compile_options
from policies.backtest.fault_model import Outage, Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replica_pool import ModelPool, Try
from policies.backtest.workload import Arrival
from policies.hardware.pool_line import KEPT_S, RECHECK_S
from policies.learning.device_constants import Measured
from shunter.backtest.suite import Setting, run_one, shunter

OPTION = make_options().of("premium-eu", "yard-8b-fp8")
SCALE, PLACES, TTFT_S = OPTION.time_scale, OPTION.max_batch, 1.5
PREFILL_S = OPTION.roofline.prefill_s(300)
# Far more than the time in which the first token of one in line is due.
LONG_TOKENS = 20_000
# At most so long after the loss of a replica its work has ended.
ITERATION_S = 0.01


def outcomes(lengths: list[int], reality: Reality, *pools: str) -> list[ReplayOutcome]:
    """Return the outcomes of chats that come together, and of a last one 5 s later."""
    arrivals = [
        asked(row, 0.001 * row, output_tokens=tokens, constraints={"pools": list(pools)})
        for row, tokens in enumerate(lengths)
    ]
    arrivals.append(asked(len(lengths), 5.0, constraints={"pools": list(pools)}))
    return outcomes_of(arrivals, reality)


def outcomes_of(arrivals: list[Arrival], reality: Reality) -> list[ReplayOutcome]:
    setting = Setting(arrivals, make_fleet(), make_policy(), reality)
    options = compile_options(setting.fleet)
    return run_one("shunter", setting, options, shunter(setting, options)).run.outcomes


def test_where_nothing_ends_one_in_line_begins_when_its_token_is_nearly_due() -> None:
    only = {"pools": ["premium-eu"]}
    tpot_ms = 1000.0 * OPTION.roofline.step_s(1, 300) / SCALE
    alone = {"ttft_ms": 60_000.0, "tpot_ms": tpot_ms}
    arrivals = [
        asked(0, 0.0, output_tokens=LONG_TOKENS, constraints=only, slo=alone),
        asked(1, 0.1, output_tokens=10, constraints=only),
    ]
    running, found = outcomes_of(arrivals, Reality())
    assert running.finished_s is not None
    assert running.finished_s > 0.1 + TTFT_S
    latest_s = 0.1 + TTFT_S - (KEPT_S + PREFILL_S) / SCALE
    assert found.started_s is not None
    assert latest_s <= found.started_s <= latest_s + 1.1 * RECHECK_S / SCALE
    assert found.attained


def test_tier_priority_and_batches_wait_for_no_room() -> None:
    for tier, path in (("priority", "direct"), ("auto", "batch")):
        loaded = Loaded()
        loaded.submit(10, 0.2, 10, tier, path)
        assert 10 in loaded.begun


def test_an_outage_sends_those_in_line_elsewhere_as_those_that_run() -> None:
    gone = Outage(pool="premium-eu", from_s=0.5, to_s=100.0)
    lengths = 3 * PLACES * [LONG_TOKENS]
    found = outcomes(lengths, Reality(outages=(gone,)), "premium-eu", "premium-us")
    there = [outcome for outcome in found if outcome.sends[0].option.pool == "premium-eu"]
    assert len(there) > PLACES, "some were in line"
    for outcome in there:
        (fallback,) = outcome.profile.fallbacks
        assert (fallback.pool, fallback.reason) == ("premium-eu", "unavailable")
        assert (outcome.pool, outcome.status) == ("premium-us", "completed")
        assert outcome.sends[1].profile.routed_at == pytest.approx(gone.from_s, abs=ITERATION_S)


def test_a_replica_that_is_preempted_has_nobody_in_line_fail() -> None:
    reality = Reality(preemptions_per_hour={"premium-eu": 1800.0}, seed=1)
    lengths = [*PLACES * [LONG_TOKENS], 10, 10]
    *runs, one, two, _ = outcomes(lengths, reality, "premium-eu")
    lost_at = min(outcome.sends[1].profile.routed_at for outcome in runs)
    assert 0.1 < lost_at < 0.9 * TTFT_S
    for outcome in (one, two):
        assert (outcome.tries, outcome.status) == (1, "completed")
        assert outcome.started_s == pytest.approx(lost_at), "not only when the line is due"


class Loaded:
    """A pool whose places are taken, and two in its line."""

    def __init__(self, **changes: object) -> None:
        option = replace(OPTION, **changes)  # type: ignore[arg-type]
        self.pool = ModelPool([option], Reality(), random.Random(0).random)
        self.option = option
        self.begun: dict[int, float] = {}
        for row in range(PLACES):
            self.submit(row, 0.001 * row, LONG_TOKENS)
        self.now = 0.1
        list(self.pool.advance(0, self.now))
        self.line = [self.submit(PLACES, 0.1, 10), self.submit(PLACES + 1, 0.1, 10)]

    def submit(
        self, row: int, at: float, output_tokens: int, tier: Any = "auto", path: Any = "direct"
    ) -> Try:
        made = make_profile(make_policy(), id=f"c{row}", hints={"input_tokens": 300})
        profile = replace(made, created_at=at, ttft_s=TTFT_S, tpot_s=None, tier=tier)
        outcome = ReplayOutcome(row, profile, 300, output_tokens)
        attempt = Try(outcome, self.option, path, None)
        self.pool.submit(attempt, at)
        self.start(at)
        return attempt

    def start(self, at: float) -> None:
        for attempt, _ in self.pool.start(at):
            assert attempt.outcome.row not in self.begun
            self.begun[attempt.outcome.row] = at


def test_a_heartbeat_has_the_line() -> None:
    loaded = Loaded()
    status = loaded.pool.status(0.1)
    assert (status.running, status.queued) == (PLACES, 2)
    assert status.variants[OPTION.variant].queued == 2
    assert status.backlog_s == pytest.approx(2 * PREFILL_S / SCALE)
    loaded.pool.fail_line(0.1)
    assert [ended.attempt for ended in loaded.pool.failed()] == loaded.line
    status = loaded.pool.status(0.1)
    assert (status.queued, status.backlog_s) == (0, 0.0)


def test_the_time_of_a_fast_pool_is_its_own() -> None:
    loaded = Loaded()
    latest_s = 0.1 + TTFT_S - (KEPT_S + PREFILL_S) / SCALE
    due_at = loaded.pool.look_at(0.1)
    assert due_at == pytest.approx(0.1 + RECHECK_S / SCALE)
    loaded.start(latest_s - 0.001)
    assert set(loaded.begun) == set(range(PLACES))
    loaded.start(latest_s + 0.001)
    assert set(loaded.begun) == set(range(PLACES + 2))
    assert loaded.pool.look_at(latest_s + 0.001) is None


def test_the_pace_that_is_learned_has_no_wait_in_the_line() -> None:
    loaded, measured = Loaded(), list[Measured]()
    pool = loaded.pool
    pool._pace.learn = lambda *args: measured.append(args[2])  # type: ignore[method-assign]
    loaded.now = 0.5
    pool.lose(0, loaded.now)
    while (due_at := pool.due_at(0)) is not None:
        list(pool.advance(0, due_at))
    was_idle = pool.is_idle
    loaded.start(loaded.now)
    while (due_at := pool.due_at(0)) is not None:
        list(pool.advance(0, due_at))
    assert len(measured) == 2
    assert (was_idle, pool.is_idle) == (False, True)
    for took in measured:
        assert took.first_s is not None
        assert took.first_s < OPTION.latency_s + 2 * PREFILL_S + 0.05
