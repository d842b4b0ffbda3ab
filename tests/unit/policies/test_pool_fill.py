"""The room that a pool keeps free on its replicas: less where hardly any request misses."""

import pytest
from accelerator_cases import VARIANTS
from backtest_cases import cost_usd, replay
from hypothesis import given
from hypothesis import strategies as st

from policies.hardware import pool_fill
from policies.hardware.iteration import Job
from policies.hardware.pool_fill import FULL, MISS_STEP, MISSED_MAX, PoolFill
from policies.hardware.replica import USUAL, Ask, Replica
from policies.hardware.replica_choice import choose_replica

TO_FULL = round(1 / (MISSED_MAX * MISS_STEP)) + 1
TO_USUAL = round(1 / MISS_STEP) + 1


def after(kept: int, missed: int = 0) -> PoolFill:
    found = PoolFill()
    for _ in range(kept):
        found.ended(is_kept=True)
    for _ in range(missed):
        found.ended(is_kept=False)
    return found


def test_a_new_pool_fills_as_usual_and_one_that_keeps_all_becomes_full() -> None:
    assert PoolFill().limits == USUAL
    assert after(TO_FULL).limits == pytest.approx(FULL)
    between = after(TO_FULL // 2).limits
    shares = zip(USUAL[:3], between[:3], FULL[:3], strict=True)
    assert all(low < each < high for low, each, high in shares)


def test_misses_bring_the_usual_room_back() -> None:
    assert after(TO_FULL, missed=TO_USUAL).limits == USUAL


@given(st.lists(st.booleans(), max_size=100))
def test_a_pool_is_never_filled_beyond_full_nor_less_than_usual(kept: list[bool]) -> None:
    found = after(TO_FULL)
    for each in kept:
        found.ended(is_kept=each)
        for low, share, high in zip(USUAL, found.limits, FULL, strict=True):
            assert low <= share <= high + 1e-12


def test_where_more_miss_than_may_the_usual_room_stays() -> None:
    found = PoolFill()
    for number in range(20_000):
        found.ended(is_kept=number % 100 != 0)
    assert found.limits.tpot_share < USUAL.tpot_share + 0.1 * (FULL.tpot_share - USUAL.tpot_share)


def test_a_replica_takes_more_where_its_pool_has_become_full() -> None:
    replicas = [Replica(VARIANTS) for _ in range(2)]
    replicas[0].submit(Job("running", "llama", 500, 2_000), 0.0)
    replicas[0].advance(1.0)
    round_s = replicas[0].accelerator.round_s("llama", 500)
    near = Ask("llama", 500, 100, tpot_s=round_s / 0.75)
    assert choose_replica(replicas, near, 6.0, PoolFill().limits) == 1
    assert choose_replica(replicas, near, 6.0, after(TO_FULL).limits) == 0


def test_a_backtest_fills_replicas_by_what_its_requests_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_fill, "MISSED_MAX", 0.0)
    as_usual, _ = replay(rows=1_200, rate=10)
    monkeypatch.setattr(pool_fill, "MISSED_MAX", 1.0)
    further, _ = replay(rows=1_200, rate=10)
    assert cost_usd(further) < cost_usd(as_usual)
