"""Convert the folded counts to the rows of a snapshot."""

from collections.abc import Iterator, Sequence
from json import JSONDecoder
from typing import Any

from policies import Option
from policies.fleet_state.misfits import misfit
from policies.fleet_state.pool_stats import Told, pooled_speed
from streams.live.counters import ClassTally, GroupTally, LiveCounters, PoolTally
from streams.live.holds import WaitingGroup
from streams.live.snapshot import (
    EndsView,
    GroupsView,
    GroupView,
    Money,
    PoolView,
    Snapshot,
    Window,
    Workload,
)
from streams.live.view import LiveView
from topics import PoolStatus

GROUPS_MAX = 200
SECONDS_PER_HOUR = 3600
_PARSER = JSONDecoder()
# In the order of policies.batching.groups.
CONSTRAINTS = ("regions", "precisions", "pools", "exclude_pools", "labels", "max_cost_usd")


def snapshot_of(
    view: LiveView, now: float, *, is_current: bool = True, unanswered_s: float = 0.0
) -> Snapshot:
    """Return the current view; no broker has answered for ``unanswered_s``.

    A heartbeat that could not be heard says nothing of its worker, which is shown as it was.
    """
    begins_at = max(view.since, view.window.begins_at(now))
    seconds = max(now - begins_at, 1e-3)
    recent = view.window.sum(now)
    return Snapshot(
        at=now,
        since=view.since,
        window=Window(begins_at, seconds),
        is_current=is_current,
        silent_s=None if view.newest_at is None else max(0.0, now - view.newest_at),
        unanswered_s=unanswered_s,
        unreadable=view.unreadable,
        ended=_ended(recent, seconds),
        ended_total=_ended(view.total, max(now - view.since, 1e-3)),
        money=_money(recent, seconds),
        money_total=_money(view.total, max(now - view.since, 1e-3)),
        pools=list(_pools(view, recent, now - unanswered_s, seconds)),
        holds=_holds(view, recent, now),
        classes=list(_classes(view, recent, seconds)),
        fallbacks=list(reversed(view.fallbacks)),
    )


def _ended(tally: LiveCounters, seconds: float) -> EndsView:
    count = tally.statuses.total()
    return EndsView(
        requests=count,
        per_s=count / seconds,
        statuses=dict(tally.statuses.most_common()),
        refusals=dict(tally.refusals.most_common()),
        dead_letters=dict(tally.dead_letters.most_common()),
        duplicates=tally.duplicates,
    )


def _money(tally: LiveCounters, seconds: float) -> Money:
    hours = seconds / SECONDS_PER_HOUR
    saving = 1 - tally.compared_usd / tally.premium_usd if tally.premium_usd > 0 else None
    return Money(
        usd=tally.usd,
        usd_per_hour=tally.usd / hours,
        compared=tally.compared,
        compared_usd=tally.compared_usd,
        premium_estimate_usd=tally.premium_usd,
        premium_estimate_usd_per_hour=tally.premium_usd / hours,
        saving=saving,
    )


def _pools(
    view: LiveView, recent: LiveCounters, known_at: float, seconds: float
) -> Iterator[PoolView]:
    declared, drifted = view.options.by_pool, view.quality.drifted()
    others = sorted((view.workers.pools() | set(view.total.pools)) - set(declared))
    for name in [*declared, *others]:
        reports = view.workers.live(name, known_at)
        newest = view.workers.newest(name)
        known = declared[name][0] if name in declared else newest
        told = recent.pools.get(name, PoolTally())
        total = view.total.pools.get(name, PoolTally())
        slots, running = (sum(getattr(s, what) for s in reports) for what in ("slots", "running"))
        backlogs = [s.backlog_s for s in reports if s.state == "up"]
        yield PoolView(
            pool=name,
            device=known.device if known else None,
            kind=declared[name][0].kind if name in declared else None,
            assumed=name in declared and declared[name][0].is_assumed,
            region=known.region if known else None,
            state=_state(reports, declared.get(name, ())),
            workers=len(reports),
            slots=slots,
            running=running,
            queued=sum(s.queued for s in reports),
            load=running / slots if slots else 0.0,
            busy=_busy(declared.get(name, ()), reports, told.usd, seconds),
            backlog_s=min(backlogs, default=0.0),
            speed=_speed(reports),
            circuits=_circuits(reports),
            drifted=sorted(drifted.get(name, ())),
            direct=told.direct,
            batch=told.batch,
            fallbacks=told.fallbacks,
            per_s=(told.direct + told.batch) / seconds,
            usd=told.usd,
            usd_per_hour=told.usd / seconds * SECONDS_PER_HOUR,
            cached_share=told.cached_tokens / told.prompt_tokens if told.prompt_tokens else None,
            wh_per_request=told.energy_wh / (told.direct + told.batch) if told.energy_wh else None,
            total_direct=total.direct,
            total_batch=total.batch,
            total_fallbacks=total.fallbacks,
            total_usd=total.usd,
            total_wh=total.energy_wh,
        )


def _busy(
    options: Sequence[Option], reports: list[PoolStatus], usd: float, seconds: float
) -> float | None:
    replicas = sum(report.replicas for report in reports)
    if not options or not replicas or options[0].usd_per_s <= 0:
        return None
    # The paid time of a simulated device is not sped up.
    return usd / (options[0].usd_per_s * options[0].time_scale * replicas * seconds)


def _state(reports: list[PoolStatus], declared: Sequence[Option]) -> str:
    if not reports:
        return "none"
    taking = [report for report in reports if report.state == "up"]
    # Versions differ while a change spreads, and from a fleet file that is no longer in force.
    if declared and any(misfit(report, declared, "") for report in taking):
        return "misfit"
    return "up" if taking else "draining"


def _speed(reports: list[PoolStatus]) -> dict[str, float]:
    found: dict[str, list[Told]] = {}
    for report in reports:
        for variant, status in report.variants.items():
            found.setdefault(variant, []).append((status.speed, status.speed_known))
    speeds = {variant: pooled_speed(told) for variant, told in sorted(found.items())}
    return {variant: speed for variant, speed in speeds.items() if speed is not None}


def _circuits(reports: list[PoolStatus]) -> dict[str, str]:
    return {
        variant: status.circuit
        for report in reports
        for variant, status in report.variants.items()
        if status.circuit != "closed"
    }


def _holds(view: LiveView, recent: LiveCounters, now: float) -> GroupsView:
    waiting = {each.group: each for each in view.holds.waiting()}
    names = sorted(
        waiting.keys() | recent.groups.keys(),
        key=lambda group: (-waiting[group].held if group in waiting else 0, group),
    )
    full = view.policy.windows.members_max
    return GroupsView(
        held=len(view.holds),
        left_out=view.holds.left_out,
        groups=[
            _hold(
                group,
                waiting.get(group),
                full,
                recent.groups.get(group, GroupTally()),
                view.total.groups.get(group, GroupTally()),
                now,
            )
            for group in names[:GROUPS_MAX]
        ],
    )


def _hold(
    group: str,
    waiting: WaitingGroup | None,
    full: int,
    told: GroupTally,
    total: GroupTally,
    now: float,
) -> GroupView:
    # In the format of policies.batching.groups.
    model, operation, kind, prompt, constraints = [*group.split("|", 4), "", "", "", ""][:5]
    tokens = prompt.removeprefix("le")
    held = 0 if waiting is None else waiting.held
    return GroupView(
        group=group,
        model=model,
        operation=operation,
        is_batch=kind == "batch",
        prompt_tokens_max=int(tokens) if tokens.isdecimal() else None,
        constraints=_constraints(constraints),
        held=held,
        full=full,
        fill=held / full,
        oldest_s=None if waiting is None else max(0.0, now - waiting.oldest_at),
        release_in_s=None if waiting is None else waiting.due_at - now,
        released=told.released,
        batches=told.batches,
        reasons=dict(told.reasons.most_common()),
        total_released=total.released,
        total_batches=total.batches,
    )


def _constraints(text: str) -> dict[str, Any]:
    """Return the constraints at the beginning of what stands last in a group's name.

    Other terms of the group may stand behind them, or alone, such as its floor of quality.
    """
    try:
        # Only the standard library's parser leaves out what stands behind.
        values, _ = _PARSER.raw_decode(text)
        if len(values) < len(CONSTRAINTS):
            return {}
        named = zip(CONSTRAINTS, values, strict=False)
        found = {name: value for name, value in named if value not in (None, [])}
        return found | {name: dict(found[name]) for name in ("labels",) if name in found}
    except (ValueError, TypeError, RecursionError):
        # Named by another version; the group's whole name says enough.
        return {}


def _classes(view: LiveView, recent: LiveCounters, seconds: float) -> Iterator[Workload]:
    for task, total in sorted(view.total.classes.items()):
        told = recent.classes.get(task, ClassTally())
        ended = told.statuses.total()
        yield Workload(
            task=task,
            ended=ended,
            per_s=ended / seconds,
            statuses=dict(told.statuses.most_common()),
            without_answer=ended - told.statuses["completed"],
            judged=told.judged,
            kept=told.kept,
            attainment=_share(told),
            ttft_p50_s=told.ttft.quantile(0.5),
            ttft_p99_s=told.ttft.quantile(0.99),
            finish_p50_s=told.finish.quantile(0.5),
            finish_p99_s=told.finish.quantile(0.99),
            total_ended=total.statuses.total(),
            total_attainment=_share(total),
        )


def _share(tally: ClassTally) -> float | None:
    return tally.kept / tally.judged if tally.judged else None
