"""The search of `shunter plan`: its bound, its fleets, each kind of device alone, its report."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from policies.config.hardware import Kind
from shunter.backtest.programme import NoBoundError
from shunter.backtest.suite import Setting
from shunter.console import UserError, err, out
from shunter.plan.capacity import Capacity, capacity, servable_without
from shunter.plan.judge import Case, Judge
from shunter.plan.market import Counts, Market, rent
from shunter.plan.picture import draw
from shunter.plan.policy_bound import PolicyBound
from shunter.plan.search import FleetSearch, JudgedFleet, NoPlanError, binding, curve

BOUND_SHARE = 0.25
"""Share of the time that the solver may take."""

NO_GAP = 1e-4
"""Less is the solver's tolerance."""

Wanted = tuple[float, float]
"""Attainment of all, and of each class."""
Found = tuple[Capacity, FleetSearch, JudgedFleet]


def find_plan(
    setting: Setting,
    market: Market,
    wanted: Wanted,
    cases: list[Case],
    seconds: float,
    *,
    beside: bool,
    plot: Path | None,
) -> dict[str, Any]:
    """Return what there is to tell of the cheapest fleet, and draw it if a file is named.

    Args:
        setting: the trace, and the pools that may be rented.
        market: offers and limits.
        wanted: attainment of all, and of each class.
        cases: the pools that may be gone together, each.
        seconds: time for all of it.
        beside: whether to plan with each kind of device alone, too.
        plot: PNG to draw.

    Raises:
        UserError: there is no bound, or no fleet.
    """
    if not servable_without(setting, ()):
        raise UserError("the fleet has no pool that may serve a request of the trace")
    kinds = _kinds(setting) if beside else []
    seconds /= 2 if kinds else 1
    alone = {
        kind: _alone(setting, market, wanted, cases, seconds / len(kinds), kind) for kind in kinds
    }
    others = [each.counts for each in alone.values() if not isinstance(each, str)]
    try:
        found = _found(setting, market, wanted, cases, seconds, others)
    except (NoBoundError, NoPlanError) as error:
        raise UserError(str(error)) from error
    if plot is not None:
        bounds = {
            "bound of any schedule": found[0].bound_usd_per_hour,
            "bound under this policy": _bound(found),
        }
        draw(plot, curve(found[1].seen.values()), found[2], bounds)
    return _report(setting, market, found, alone)


def _found(
    setting: Setting,
    market: Market,
    wanted: Wanted,
    cases: list[Case],
    seconds: float,
    others: Sequence[Counts] = (),
    *,
    is_bounded: bool = True,
) -> Found:
    """Return the programme's answer, the search, and its best fleet.

    With ``is_bounded`` cores with nothing else to do raise the bound under the policy.
    """
    ends_at = time.monotonic() + seconds
    start = capacity(setting, market, cases, BOUND_SHARE * seconds, wanted)
    err.print(f"bound: ${start.bound_usd_per_hour:.2f} an hour", highlight=False)
    judge = Judge(setting, market, *wanted)
    under_policy = PolicyBound(setting.fleet, market, cases, start.cuts) if is_bounded else None
    search = FleetSearch(judge, cases, ends_at - time.monotonic(), _tell, under_policy)
    return start, search, search.run(start.replicas, others)


def _kinds(setting: Setting) -> list[Kind]:
    """Return the kinds of device that serve each model of the trace."""
    fleet, models = setting.fleet, {arrival.model for arrival in setting.arrivals}
    served: dict[Kind, set[str]] = {}
    for pool in fleet.pools.values():
        kind = fleet.devices[pool.device].kind
        served.setdefault(kind, set()).update(each.model for each in pool.serves)
    return sorted(kind for kind, known in served.items() if models <= known)


def _alone(
    setting: Setting,
    market: Market,
    wanted: Wanted,
    cases: list[Case],
    seconds: float,
    kind: Kind,
) -> JudgedFleet | str:
    """Return the best fleet of one kind of device, or why there is none."""
    fleet = setting.fleet
    pools = {n: p for n, p in fleet.pools.items() if fleet.devices[p.device].kind == kind}
    only = Setting(
        setting.arrivals, fleet.model_copy(update={"pools": pools}), setting.policy, setting.reality
    )
    kept = {name: known for name, known in market.pools.items() if name in pools}
    regions = {pool.region for pool in pools.values()}
    sites = {name: site for name, site in market.sites.items() if name in regions}
    err.print(f"of {kind} alone:", highlight=False)
    narrowed = market.model_copy(update={"pools": kept, "sites": sites})
    inside = [tuple(name for name in case if name in pools) for case in cases]
    try:
        known = [case for case in inside if case]
        return _found(only, narrowed, wanted, known, seconds, is_bounded=False)[2]
    except (NoBoundError, NoPlanError) as error:
        return str(error)


def _tell(line: str) -> None:
    err.print(line, highlight=False)


def _bound(found: Found) -> float:
    """Return the bound under the policy, in dollars an hour; at most the plan's price."""
    start, search, best = found
    known = start.bound_usd_per_hour
    return min(search.bound.usd_per_hour if search.bound else known, best.usd_per_hour)


def _report(
    setting: Setting, market: Market, found: Found, alone: dict[Kind, JudgedFleet | str]
) -> dict[str, Any]:
    start, search, best = found
    rents = {name: rent(name, count, setting.fleet, market) for name, count in best.counts.items()}
    last_s = max(arrival.arrival_s for arrival in setting.arrivals)
    return {
        "requests": len(setting.arrivals),
        "requests_per_s": len(setting.arrivals) / last_s if last_s else None,
        "usd_per_hour": best.usd_per_hour,
        "tokens_usd_per_hour": best.usual.tokens_usd_per_hour,
        "bound_usd_per_hour": start.bound_usd_per_hour,
        "gap": _above(best, start.bound_usd_per_hour),
        "policy_bound_usd_per_hour": _bound(found),
        "policy_gap": _above(best, _bound(found)),
        "fleets_that_fail": [each.counts for each in search.bound.failing] if search.bound else [],
        "pools": {
            name: {
                "replicas": best.counts[name],
                "region": setting.fleet.pools[name].region,
                "device": setting.fleet.pools[name].device,
                "rented": each.by_offer,
                "usd_per_hour": each.usd_per_hour,
            }
            for name, each in rents.items()
        },
        "binds": binding(search, best),
        "attainment": best.usual.attainment,
        "attainment_by_task": best.usual.by_task,
        "worst_case": {
            "gone": best.worst_case,
            "attainment": best.worst.attainment,
            "attainment_by_task": best.worst.by_task,
        },
        "busy_usd": best.usual.busy_usd,
        "unservable": start.unservable,
        "curve": [
            {
                "usd_per_hour": each.usd_per_hour,
                "attainment": each.usual.attainment,
                "replicas": each.counts,
            }
            for each in curve(search.seen.values())
        ],
        "fleets_judged": len(search.seen),
        "is_cut_short": search.is_cut_short,
        "one_kind": {
            kind: each
            if isinstance(each, str)
            else {
                "usd_per_hour": each.usd_per_hour,
                "replicas": each.counts,
                "dearer_by": each.usd_per_hour / best.usd_per_hour - 1
                if best.usd_per_hour
                else None,
            }
            for kind, each in alone.items()
        },
    }


def _above(best: JudgedFleet, bound: float) -> float | None:
    return best.usd_per_hour / bound - 1 if bound else None


def show_plan(report: dict[str, Any]) -> None:
    """Print the report for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pool", "device", "region"):
        table.add_column(heading)
    for heading in ("replicas", "rented as", "$ an hour"):
        table.add_column(heading, justify="right")
    for name, pool in report["pools"].items():
        rented = ", ".join(f"{count} {offer}" for offer, count in pool["rented"].items())
        table.add_row(
            *(name, pool["device"], pool["region"], str(pool["replicas"]), rented),
            f"{pool['usd_per_hour']:.2f}",
        )
    out.print(table)
    out.print()
    _show_price(report)
    classes = ", ".join(f"{t} {share:.1%}" for t, share in report["attainment_by_task"].items())
    out.print(f"attains {report['attainment']:.2%}: {classes}", highlight=False)
    if gone := report["worst_case"]["gone"]:
        share = report["worst_case"]["attainment"]
        out.print(f"at worst, with {', '.join(gone)} gone, {share:.2%}", highlight=False)
    for pool, missed in report["binds"].items():
        objectives = ", ".join(f"{task} its {name}" for task, name in missed.items())
        out.print(f"with a replica less of {pool}: too many miss, of {objectives}", highlight=False)
    if report["unservable"]:
        out.print(f"{report['unservable']} requests no pool could serve in time, whatever its size")
    for kind, each in report["one_kind"].items():
        told = (
            f"none: {each}"
            if isinstance(each, str)
            else f"${each['usd_per_hour']:.2f} an hour{_dearer(each['dearer_by'])}"
        )
        out.print(f"of {kind} alone: {told}", highlight=False, soft_wrap=True)
    curve_table = Table(box=None, pad_edge=False, header_style="bold")
    curve_table.add_column("$ an hour", justify="right")
    curve_table.add_column("attained", justify="right")
    curve_table.add_column("fleet")
    for point in report["curve"]:
        fleet = ", ".join(f"{count} x {name}" for name, count in point["replicas"].items())
        curve_table.add_row(f"{point['usd_per_hour']:.2f}", f"{point['attainment']:.1%}", fleet)
    out.print()
    out.print(curve_table)


def _show_price(report: dict[str, Any]) -> None:
    if report["tokens_usd_per_hour"]:
        out.print(f"for tokens ${report['tokens_usd_per_hour']:.2f} an hour", highlight=False)
    fails = report["fleets_that_fail"]
    out.print(
        f"${report['usd_per_hour']:.2f} an hour, for {_rate(report)};"
        f" {report['fleets_judged']} fleets judged, {len(fails)} more for the bound",
        highlight=False,
    )
    if report["policy_gap"] is not None:
        out.print(
            f"{_over(report['policy_gap'])} ${report['policy_bound_usd_per_hour']:.2f}, less than"
            " which no fleet costs that holds under this policy, if a replica more never harms",
            highlight=False,
        )
    if report["gap"] is not None:
        out.print(
            f"{_over(report['gap'])} ${report['bound_usd_per_hour']:.2f}, less than which no"
            " schedule needs, even one that knows all beforehand",
            highlight=False,
        )
    if report["is_cut_short"]:
        out.print("the time was over before the search: more --minutes may find less")


def _over(gap: float) -> str:
    return f"{gap:.0%} above" if gap >= NO_GAP else "it is"


def _rate(report: dict[str, Any]) -> str:
    per_s = report["requests_per_s"]
    if per_s is None:
        return f"{report['requests']:,} requests at once"
    return f"{per_s:.1f} requests/s" if per_s >= 1 else f"{per_s:.2g} requests/s"


def _dearer(share: float | None) -> str:
    return "" if share is None else f", {share:+.0%}"
