"""What a live view has to show, counted from every result and every piece of evidence."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from system import System


def compare(shown: Any, system: System) -> None:
    """Hold a view against every result, every piece of evidence and what is held."""
    results = [result for each in system.results.values() for result in each]
    completed = [r for r in results if r["status"] == "completed"]
    total = shown["ended_total"]
    assert total["statuses"] == Counter(r["status"] for r in results)
    refused = Counter(r["error"]["code"] for r in results if r["status"] != "completed")
    assert total["refusals"] == refused
    assert sum(total["dead_letters"].values()) == len(system.dead_letters)
    duplicates = [e for e in system.evidence if e["step"] == "duplicate"]
    assert total["duplicates"] == len(duplicates)
    usd = math.fsum(r["cost"]["usd"] for r in completed)
    assert shown["money_total"]["usd"] == pytest.approx(usd)
    for pool in shown["pools"]:
        own = [r for r in completed if r["placement"]["pool"] == pool["pool"]]
        paths = Counter(r["placement"]["path"] for r in own)
        assert (pool["total_direct"], pool["total_batch"]) == (paths["direct"], paths["batch"])
        assert pool["total_usd"] == pytest.approx(math.fsum(r["cost"]["usd"] for r in own))
    compare_classes(shown, completed, system)
    compare_money(shown, system)


def compare_classes(shown: Any, completed: Sequence[Any], system: System) -> None:
    task_of = {
        e["request_id"]: e["task"] for e in system.evidence if e["step"] in {"placed", "held"}
    }
    wanted = {e["request_id"]: e["profile"] for e in system.evidence if e.get("profile")}
    for workload in shown["classes"]:
        own = [r for r in completed if task_of[r["id"]] == workload["task"]]
        timing = [r["timing"] for r in own]
        ttft = sorted(t["first_token_at"] - t["created_at"] for t in timing)
        finish = sorted(t["finished_at"] - t["created_at"] for t in timing)
        assert workload["statuses"].get("completed", 0) == len(own)
        for name, values in (("ttft", ttft), ("finish", finish)):
            for share in (50, 99):
                rank = math.ceil(share / 100 * len(values)) - 1
                if values:
                    exact = pytest.approx(values[rank], rel=0.025)
                    assert workload[f"{name}_p{share}_s"] == exact
        kept = sum(is_kept(r, wanted[r["id"]]) for r in own)
        assert workload["kept"] == kept


def is_kept(result: Any, wanted: Any) -> bool:
    timing, usage = result["timing"], result["usage"]
    ttft_s = timing["first_token_at"] - timing["created_at"]
    tpot_s = (timing["finished_at"] - timing["first_token_at"]) / max(1, usage["output_tokens"] - 1)
    return bool(
        timing["finished_at"] <= wanted["deadline"]
        and ttft_s <= (wanted["ttft_s"] or math.inf)
        and tpot_s <= (wanted["tpot_s"] or math.inf)
    )


def compare_money(shown: Any, system: System) -> None:
    estimates: dict[str, float] = {}
    for step in system.evidence:
        costs = [
            c["cost_usd"]
            for c in step["candidates"]
            if c["pool"] == "premium-eu" and c["cost_usd"] is not None
        ]
        if step["step"] in {"placed", "held"} and costs:
            estimates[step["request_id"]] = min(costs)
    done = [e["request_id"] for e in system.evidence if e["step"] == "executed"]
    money = shown["money_total"]
    compared = [name for name in done if name in estimates]
    assert money["compared"] == len(compared)
    assert money["premium_estimate_usd"] == pytest.approx(math.fsum(estimates[n] for n in compared))
