"""The calculation of docs/scale.md."""

import pytest

from benchmarks.scale import Assumed, Request, needs


def test_a_workers_transaction_has_what_its_partition_gets_between_two_commits() -> None:
    request = Request(1024, 2000, 6000, 1500, 0.05, 1500, router_us=139.0, client_us=60.0)

    def needed(rate: float, pools: int) -> dict[str, float]:
        assumed = Assumed(rate, pools, 100, 0.05, 3, 500.0, 100_000.0, 0.6, 30.0)
        return {what: amount for what, amount, _ in needs(request, assumed)}

    wide = needed(1e6, 40)
    # 332 partitions of each of 40 lanes have 75 requests/s each.
    assert wide["records in a worker's transaction"] == pytest.approx(1e6 / 13_280 * 0.05)
    assert wide["a worker's transactions/s"] == pytest.approx(20 * 13_280)
    assert wide["a router's transactions/s"] == 10_000
    # Of a router's 40 lanes and 100 keys of evidence, of a worker's results and evidence.
    by_router, by_worker = 3 + 40 + 100 + 2, 3 + 2 * 1e6 / 13_280 * 0.05 + 2
    assert wide["writes of coordinators and markers/s"] == pytest.approx(
        10_000 * by_router + 20 * 13_280 * by_worker
    )
    assert needed(100.0, 40)["records in a worker's transaction"] == 1.0
    assert needed(1e6, 1)["records in a worker's transaction"] == 100
