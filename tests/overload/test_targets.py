"""The overload runs must fail beyond their targets: on made-up figures."""

import logging

import batch_windows
import burst
import door
import lanes
import large_batch
import open_transaction
import priority
import pytest
from stream import show

NAN = float("nan")


@pytest.mark.parametrize(
    ("median", "p99", "missed"),
    [(1.5, 1.5, 0), (1.6, 1.0, 1), (1.0, 1.6, 1), (NAN, 1.0, 1), (2.0, 2.0, 2)],
)
def test_a_slow_pool_slows_only_its_own_lane(median: float, p99: float, missed: int) -> None:
    assert len(lanes.beyond({"median_ratio": median, "p99_ratio": p99})) == missed


@pytest.mark.parametrize(
    ("median", "p99", "factor", "missed"),
    [(0.33, 0.33, 2.0, 0), (0.34, 0.2, 2.0, 1), (NAN, NAN, 2.0, 2), (0.1, 0.1, 1.0, 1)],
)
def test_priority_is_served_first_and_priced(
    median: float, p99: float, factor: float, missed: int
) -> None:
    found = {"median_ratio": median, "p99_ratio": p99, "price_factors": {"priority": factor}}
    assert len(priority.beyond(found)) == missed


@pytest.mark.parametrize(("in_time", "missed"), [(1.0, 0), (0.99, 0), (0.98, 1)])
def test_urgent_requests_are_in_time_in_a_burst(in_time: float, missed: int) -> None:
    assert len(burst.beyond({"urgent_in_time": in_time})) == missed


@pytest.mark.parametrize(("worst_s", "missed"), [(0.11, 0), (0.13, 1)])
def test_a_kill_delays_no_other_partition(worst_s: float, missed: int) -> None:
    calm = {"before": {"median_s": 0.02}, "after": {"max_s": 0.05}}
    delayed = {"before": {"median_s": 0.02}, "after": {"max_s": worst_s}}
    # What the dead one had waits, and so do others while its partitions are taken over.
    late = {"after": {"max_s": 7.5}}
    rounds = [
        {"other_partitions": calm, "own_partitions": late},
        {"other_partitions": delayed | {"takeover": {"max_s": 1.2}}, "own_partitions": late},
    ]
    found = open_transaction.beyond(rounds)
    assert len(found) == missed
    assert all(each.startswith("round 2") for each in found)


@pytest.mark.parametrize(
    ("all_served", "mean", "goodput", "missed"),
    [(1.2, 1.2, 0.95, 0), (1.21, 1.0, 1.0, 1), (1.0, 1.21, 1.0, 1), (1.0, 1.0, 0.94, 1)],
)
def test_who_comes_again_is_served_as_in_a_queue(
    all_served: float, mean: float, goodput: float, missed: int
) -> None:
    found = {"ratio_all_served": all_served, "ratio_mean_wait": mean, "goodput": goodput}
    assert len(door.beyond({"pool": found})) == missed


@pytest.mark.parametrize("wrong", [[], ["too late", "too slow"]])
def test_a_run_beyond_its_target_ends_with_an_error(
    wrong: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # A run quietens the client for good: here until the end of the test.
    caplog.set_level(logging.ERROR, "aiokafka")

    async def run() -> dict[str, float]:
        return {"figure": 1.0}

    if wrong:
        with pytest.raises(SystemExit, match="too late; too slow"):
            show(run(), lambda _: wrong)
    else:
        show(run(), lambda _: wrong)
    assert '"figure": 1.0' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, 0),
        ({"lost": 1, "published_twice": 2}, 2),
        ({"status": "expired"}, 1),
        ({"completed": 9}, 1),
        ({"memory_mb": [100, 301]}, 1),
    ],
)
def test_a_large_batch_has_each_line_once_in_constant_memory(
    changed: dict[str, object], missed: int
) -> None:
    found = {"status": "completed", "lines": 10, "completed": 10, "memory_mb": [100, 200]}
    found |= dict.fromkeys(("lost", "twice_in_the_files", "published_twice"), 0)
    assert len(large_batch.beyond(found | changed)) == missed


def test_lines_of_a_large_batch_are_of_200_mb_together() -> None:
    lines = [large_batch.line(n) for n in (0, 49_999)]
    assert {len(each) for each in lines} == {200_000_000 // 50_000}


@pytest.mark.parametrize(("ratio", "missed"), [(0.31, 0), (0.9, 0), (0.91, 1)])
def test_a_batch_with_time_costs_less(ratio: float, missed: int) -> None:
    assert len(batch_windows.beyond({"ratio": ratio})) == missed
