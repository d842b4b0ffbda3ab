"""Figures that a live view has to show, counted from every result and piece of evidence."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import pytest

from policies import Options
from policies.scoring.premium import Work, premium_usd

ENDS = {"executed", "failed", "expired", "rejected", "cancelled"}


class Records(Protocol):
    """What was read of the topics of a whole system: ``System``, or what stands for one."""

    fleet: dict[str, Any]
    results: dict[str, list[dict[str, Any]]]
    evidence: list[dict[str, Any]]
    dead_letters: list[Any]


def compare(shown: Any, system: Records, options: Options, *, is_whole: bool = True) -> None:
    """Hold a view against every result, every piece of evidence and what is held.

    Where it is not whole, something has ended before its window: its totals alone are compared.
    """
    results = [result for each in system.results.values() for result in each]
    completed = [r for r in results if r["status"] == "completed"]
    total = shown["ended_total"]
    assert total["statuses"] == Counter(r["status"] for r in results)
    refused = Counter(r["error"]["code"] for r in results if r["status"] != "completed")
    assert total["refusals"] == refused
    assert sum(total["dead_letters"].values()) == len(system.dead_letters)
    duplicates = [e for e in system.evidence if e["step"] == "duplicate"]
    assert total["duplicates"] == len(duplicates)
    compare_pools(shown, completed, system)
    compare_classes(shown, results, system, is_whole=is_whole)
    compare_money(shown, completed, system, options)


def compare_pools(shown: Any, completed: Sequence[Any], system: Records) -> None:
    # Those that have done nothing are rows too.
    assert sorted(pool["pool"] for pool in shown["pools"]) == sorted(system.fleet["pools"])
    fallbacks = Counter(e["fallback"]["pool"] for e in system.evidence if e["step"] == "fell_back")
    for pool in shown["pools"]:
        own = [r for r in completed if r["placement"]["pool"] == pool["pool"]]
        paths = Counter(r["placement"]["path"] for r in own)
        assert (pool["total_direct"], pool["total_batch"]) == (paths["direct"], paths["batch"])
        assert pool["total_usd"] == pytest.approx(cost_of(own))
        assert pool["total_fallbacks"] == fallbacks[pool["pool"]]


def compare_classes(shown: Any, results: Sequence[Any], system: Records, *, is_whole: bool) -> None:
    task_of = {e["request_id"]: e["task"] for e in system.evidence if e["step"] in ENDS}
    wanted = {e["request_id"]: e["profile"] for e in system.evidence if e.get("profile")}
    tasks = [workload["task"] for workload in shown["classes"]]
    assert sorted(tasks) == sorted({task_of[r["id"]] for r in results})
    for workload in shown["classes"]:
        ended = [r for r in results if task_of[r["id"]] == workload["task"]]
        own = [r for r in ended if r["status"] == "completed"]
        timing = [r["timing"] for r in own]
        ttft = sorted(t["first_token_at"] - t["created_at"] for t in timing)
        finish = sorted(t["finished_at"] - t["created_at"] for t in timing)
        kept = sum(is_kept(r, wanted[r["id"]]) for r in own)
        judged = sum(is_judged(r) for r in ended)
        share_kept = kept / judged if judged else None
        assert workload["total_ended"] == len(ended)
        assert workload["total_attainment"] == share_kept
        if not is_whole:
            continue
        assert workload["statuses"] == Counter(r["status"] for r in ended)
        for name, values in (("ttft", ttft), ("finish", finish)):
            for share in (50, 99):
                rank = math.ceil(share / 100 * len(values)) - 1
                if values:
                    exact = pytest.approx(values[rank], rel=0.025)
                    assert workload[f"{name}_p{share}_s"] == exact
        assert (workload["judged"], workload["kept"]) == (judged, kept)
        assert workload["attainment"] == share_kept


def is_judged(result: Any) -> bool:
    if result["status"] == "rejected":
        return bool(result["error"]["code"] == "pool_unavailable")
    return bool(result["status"] != "cancelled")


def is_kept(result: Any, wanted: Any) -> bool:
    timing, usage = result["timing"], result["usage"]
    ttft_s = timing["first_token_at"] - timing["created_at"]
    tpot_s = (timing["finished_at"] - timing["first_token_at"]) / max(1, usage["output_tokens"] - 1)
    return bool(
        timing["finished_at"] <= wanted["deadline"]
        and ttft_s <= (wanted["ttft_s"] or math.inf)
        and tpot_s <= (wanted["tpot_s"] or math.inf)
    )


def compare_money(shown: Any, completed: Sequence[Any], system: Records, options: Options) -> None:
    able: dict[str, set[tuple[str, str]]] = {}
    for step in system.evidence:
        if step["step"] in {"placed", "held"}:
            able[step["request_id"]] = {
                (c["pool"], c["model_variant"])
                for c in step["candidates"]
                if c["pool"].startswith("premium-") and c["cost_usd"] is not None
            }
    premium: dict[str, float] = {}
    for result in completed:
        there = [options.of(*place) for place in able[result["id"]]]
        usage, place = result["usage"], result["placement"]
        work = Work(usage["input_tokens"], usage["output_tokens"], usage["cached_tokens"])
        placed = options.of(place["pool"], place["model_variant"])
        usd = premium_usd(work, placed, result["cost"]["usd"], there)
        if usd is not None:
            premium[result["id"]] = usd
    compared = [r for r in completed if r["id"] in premium]
    money = shown["money_total"]
    spent, there_usd = cost_of(compared), math.fsum(premium.values())
    assert money["usd"] == pytest.approx(cost_of(completed))
    assert money["compared"] == len(compared)
    assert money["compared_usd"] == pytest.approx(spent)
    assert money["premium_estimate_usd"] == pytest.approx(there_usd)
    assert money["saving"] == (pytest.approx(1 - spent / there_usd) if there_usd else None)


def cost_of(results: Sequence[Any]) -> float:
    return math.fsum(r["cost"]["usd"] for r in results)
