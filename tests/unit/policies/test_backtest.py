"""The backtest keeps to physics, to the books, and to its own rules."""

from collections import Counter, defaultdict

import pytest
from backtest_cases import FLEET, POLICY, cost_usd, moved, replay

from policies import parse_fleet
from policies.backtest.baselines import BASELINES
from policies.backtest.fault_model import Outage, Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import ReplayRun
from policies.backtest.scores import calibration_of, percentile, scores_of
from policies.hardware.roofline import MEMORY_UTILIZATION
from shunter.demo.scaling import fleet_text
from topics import Envelope

QUICK = 4.0
TROUBLE = Reality(
    speed={"silicon-us": 0.6, "lpddr-eu": 1.6, "cpu-eu": 0.8},
    noise=0.1,
    failure_rate=0.05,
    outages=(Outage(pool="silicon-us", from_s=20.0, to_s=60.0),),
    preemptions_per_hour={"premium-us": 60.0},
    seed=7,
)


def done(run: ReplayRun) -> list[ReplayOutcome]:
    return [outcome for outcome in run.outcomes if outcome.status == "completed"]


@pytest.fixture(scope="module")
def plain() -> ReplayRun:
    return replay()[0]


def test_each_request_has_one_end(plain: ReplayRun) -> None:
    assert [outcome.row for outcome in plain.outcomes] == list(range(2000))
    assert {outcome.status for outcome in plain.outcomes} == {"completed"}


@pytest.mark.parametrize("name", ["shunter", *BASELINES])
@pytest.mark.parametrize("reality", [Reality(), TROUBLE], ids=["as-declared", "in-trouble"])
def test_money_is_busy_time_times_price(name: str, reality: Reality) -> None:
    run, options = replay(name, reality=reality, rows=250)
    paid = sum(options.by_pool[p][0].usd_per_s * busy_s for p, busy_s in run.busy_s.items())
    assert cost_usd(run) == pytest.approx(paid, rel=1e-6)
    assert all(outcome.status is not None for outcome in run.outcomes)


def test_a_fleet_that_is_declared_faster_is_faster() -> None:
    fleet, policy = parse_fleet(fleet_text(FLEET, QUICK), "fleet.yaml"), POLICY.faster(QUICK)
    usual, _ = replay(rows=600)
    quick, _ = replay(rows=600, rate=QUICK, fleet_scale=1.0, fleet=fleet, policy=policy)
    # Alike but for the heartbeats, which are as often, and the way to the pool, which is as long.
    assert cost_usd(quick) == pytest.approx(cost_usd(usual), rel=0.1)
    kept = [sum(outcome.attained for outcome in run.outcomes) for run in (usual, quick)]
    assert kept[1] >= 0.98 * kept[0]


def test_no_prefill_is_faster_than_the_flops_allow(plain: ReplayRun) -> None:
    for outcome in done(plain):
        pool, model = FLEET.pools[outcome.pool], FLEET.models[outcome.profile.model]
        wide = pool.serves[0].tensor_parallel
        flops = FLEET.devices[pool.device].flops(outcome.precision) * wide
        end_s = outcome.finished_s if outcome.first_token_s is None else outcome.first_token_s
        least_s = 2 * model.active_parameters * outcome.input_tokens / flops
        assert end_s - outcome.started_s >= least_s


def test_no_decode_step_is_faster_than_the_weights_stream(plain: ReplayRun) -> None:
    for outcome in done(plain):
        if outcome.output_tokens > 1:
            pool, model = FLEET.pools[outcome.pool], FLEET.models[outcome.profile.model]
            wide = pool.serves[0].tensor_parallel
            bandwidth = FLEET.devices[pool.device].bandwidth_bytes_per_s * wide
            least_s = model.active_weights_bytes(outcome.precision) / bandwidth
            assert outcome.tpot_s >= least_s, outcome


def test_no_device_holds_more_than_its_memory(plain: ReplayRun) -> None:
    changes: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for outcome in done(plain):
        model = FLEET.models[outcome.profile.model]
        tokens = outcome.input_tokens + outcome.output_tokens
        kv_bytes = tokens * model.kv_bytes_per_token
        where = changes[outcome.pool, outcome.device]
        where += [(outcome.started_s, kv_bytes), (outcome.finished_s, -kv_bytes)]
    for (name, _), steps in changes.items():
        pool = FLEET.pools[name]
        weights = sum(FLEET.models[s.model].weights_bytes(s.precision) for s in pool.serves)
        wide = pool.serves[0].tensor_parallel
        usable = FLEET.devices[pool.device].memory_bytes * wide * MEMORY_UTILIZATION - weights
        held = 0.0
        # What ends at an instant makes room for what begins at it.
        for _, change in sorted(steps):
            held += change
            assert held <= usable * (1 + 1e-9)


def test_times_are_in_order(plain: ReplayRun) -> None:
    for outcome in done(plain):
        created = outcome.profile.created_at
        first_s = outcome.finished_s if outcome.first_token_s is None else outcome.first_token_s
        assert created <= outcome.dispatched_s < outcome.started_s
        assert outcome.started_s < first_s <= outcome.finished_s


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    first, again = (replay(reality=TROUBLE, rows=300)[0].outcomes for _ in range(2))
    assert first == again
    other = TROUBLE.model_copy(update={"seed": 8})
    assert replay(reality=other, rows=300)[0].outcomes != first


def test_what_fails_is_tried_elsewhere_and_the_rest_of_the_fleet_carries_an_outage() -> None:
    run, _ = replay(reality=TROUBLE, rows=800)
    tries = Counter(outcome.tries for outcome in run.outcomes)
    assert tries[2] > 20
    assert max(tries) <= POLICY.attempts_max
    for outcome in done(run):
        excluded = outcome.profile.exclude_pools
        assert outcome.pool not in excluded
        assert len(excluded) == outcome.tries - 1
        if outcome.pool == "silicon-us":
            assert not 20.0 < outcome.finished_s < 60.0
    attained = sum(outcome.attained for outcome in run.outcomes)
    assert attained >= 0.9 * len(run.outcomes)


@pytest.mark.slow
def test_a_slower_reality_shows_in_the_speeds_that_a_policy_hears() -> None:
    slow = Reality(speed={"silicon-us": 0.2})
    as_declared, distorted = replay(rows=1000)[0], replay(rows=1000, reality=slow)[0]
    assert distorted.busy_s["silicon-us"] != as_declared.busy_s["silicon-us"]
    share = sum(o.pool == "silicon-us" for o in distorted.outcomes)
    assert share < sum(o.pool == "silicon-us" for o in as_declared.outcomes)


def test_all_premium_uses_premium_gpus_only() -> None:
    run, options = replay("all_premium", rows=500)
    kinds = {pool: choices[0].kind for pool, choices in options.by_pool.items()}
    assert {kinds[outcome.pool] for outcome in run.outcomes} == {"premium_gpu"}


def test_shunter_meets_the_slo_for_less_than_the_premium_gpus(plain: ReplayRun) -> None:
    assert sum(outcome.attained for outcome in plain.outcomes) >= 0.99 * 2000
    premium, _ = replay("all_premium")
    assert cost_usd(plain) < 0.7 * cost_usd(premium)


def test_scores_count_what_happened(plain: ReplayRun) -> None:
    _, options = replay(rows=10)
    late = moved(plain.outcomes[0], finished_s=1e6)
    refused = moved(plain.outcomes[1], status="rejected", reason="no_pool")
    run = ReplayRun([late, refused, *plain.outcomes[2:10]], {}, 0, 0, 0, 0)
    scores = scores_of(run, options, violations=3)
    assert scores["slo_attainment"] == 0.8
    assert (scores["deadline_misses"], scores["rejected"]) == (2, 1)
    assert scores["refusals"] == {"no_pool": 1}
    assert scores["constraint_violations"] == 3


def test_scores_tell_by_class_what_was_missed(plain: ReplayRun) -> None:
    _, options = replay(rows=10)
    first, second, third, fourth = [o for o in plain.outcomes if o.profile.task == "chat"][:4]
    created_s, ttft_s = first.profile.created_at, first.profile.ttft_s
    assert ttft_s is not None
    begun_late = moved(first, first_token_s=created_s + ttft_s + 0.1)
    slow = moved(second, finished_s=second.first_token_s + 0.09 * (second.output_tokens - 1))
    unanswered = moved(third, status="failed", reason="unavailable", finished_s=None)
    code = next(o for o in plain.outcomes if o.profile.task == "code_planning")
    run = ReplayRun([begun_late, slow, unanswered, fourth, code], {}, 0, 0, 0, 0)
    scores = scores_of(run, options, violations=0)
    assert scores["missed_by_task"] == {
        "chat": {"requests": 4, "ttft": 1, "tpot": 1, "deadline": 1},
        "code_planning": {"requests": 1, "ttft": 0, "tpot": 0, "deadline": 0},
    }
    assert scores["slo_by_task"] == {"chat": 0.25, "code_planning": 1.0}
    assert scores["p99_tpot_ms"] == pytest.approx(90.0)


def test_the_time_in_the_hold_is_that_from_arrival_to_release(plain: ReplayRun) -> None:
    held = [outcome for outcome in plain.outcomes if outcome.held_s is not None]
    assert {outcome.profile.batchable for outcome in held} == {True}
    assert len(held) > 300
    for outcome in held:
        assert outcome.dispatched_s is not None
        waited_s = outcome.dispatched_s - outcome.profile.created_at
        assert outcome.held_s == pytest.approx(waited_s)
        assert outcome.held_s <= outcome.profile.longest_wait_s
    _, options = replay(rows=10)
    scores = scores_of(plain, options, violations=0)
    times = sorted(outcome.held_s for outcome in held)
    assert scores["held"] == len(held)
    assert scores["mean_held_s"] == pytest.approx(sum(times) / len(times))
    assert (scores["p50_held_s"], scores["p99_held_s"]) == (
        percentile(times, 0.5),
        percentile(times, 0.99),
    )


def test_calibration_compares_promises_with_what_came() -> None:
    run, _ = replay(rows=200)
    kept, broken, doubtful = (
        moved(outcome, promised=Envelope(1e-6, None, 1.0, chance=chance))
        for outcome, chance in zip(run.outcomes, (0.97, 0.96, 0.4), strict=False)
    )
    broken = moved(broken, finished_s=1e6)
    found = calibration_of([kept, broken, doubtful])
    assert found["promises"] == 3
    assert found["met_of_promised_95"] == 0.5
    assert found["brier"] == pytest.approx((0.03**2 + 0.96**2 + 0.6**2) / 3)
    assert [each["promises"] for each in found["bins"]] == [1, 2]


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
