"""The autoscaling signal of every pool, as JSON for KEDA and as metrics."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from policies import Option, Situation, refused_by
from policies.autoscaling import (
    SAMPLED_MAX,
    Demand,
    demand,
    device_s,
    replicas_by_due,
    replicas_needed,
    total,
)
from policies.scoring.constraints import refusal
from streams.autoscaling.orphaned_lanes import OrphanedLanes
from streams.batcher.stage import Batcher
from streams.engine.clock import Clock
from streams.metrics import registry as m
from streams.metrics.gauges import Readings
from topics import Profile
from topics.records.heartbeat import DUE_S

SENT, HELD = "sent", "held"
"""The parts of a signal: work sent to a pool, the same from every router; work that a router
holds, additive over routers."""


class AutoscalingSignal:
    """The work of each pool and the workers that it needs, as this router sees it.

    Sent work is what a pool's live workers have taken and what is unread in their lanes, by their
    heartbeats; for a pool without a worker, the backlog found in its lanes. Held work waits on this
    router's partitions, and counts for the cheapest pool that may serve it. So a pool without a
    worker is asked to have one in either case.
    """

    def __init__(
        self,
        situation: Callable[[], Situation],
        batcher: Batcher,
        orphaned: OrphanedLanes,
        clock: Clock,
    ) -> None:
        self._situation = situation
        self._batcher = batcher
        self._orphaned = orphaned
        self._clock = clock

    def pools(self) -> dict[str, dict[str, Any]]:
        """Return the signal of each pool.

        ``replicas_needed`` is a fraction, ``workers_needed`` rounded up to whole workers of the
        pool; ``device_s`` is device time by when it is due, in seconds; ``unread`` is how many
        requests wait in its lanes, None where that isn't known.
        """
        return {pool: self._signal(pool, parts) for pool, parts in self._parts().items()}

    def gauges(self) -> Readings:
        """Yield the metrics, computed on demand."""
        for pool, parts in self._parts().items():
            yield m.REPLICAS_NEEDED, (pool,), replicas_needed(total(parts.values()))
            yield m.WORKERS, (pool,), len(self._situation().view.reports(pool))
            unread = self._unread(pool)
            if unread is not None:
                yield m.UNREAD, (pool,), unread
            for part, due in parts.items():
                needed = replicas_by_due(due)
                for bound, seconds, replicas in zip(DUE_S, due, needed, strict=True):
                    labels = (pool, f"{bound:g}", part)
                    yield m.BACKLOG, labels, seconds
                    yield m.REPLICAS_BY_DUE, labels, replicas

    def _signal(self, pool: str, parts: Mapping[str, Demand]) -> dict[str, Any]:
        here = self._situation()
        due = total(parts.values())
        needed = replicas_needed(due)
        return {
            "workers": len(here.view.reports(pool)),
            "replicas_needed": round(needed, 4),
            "workers_needed": math.ceil(needed / here.options.by_pool[pool][0].replicas),
            "unread": self._unread(pool),
            "device_s": {f"{bound:g}": round(s, 4) for bound, s in zip(DUE_S, due, strict=True)},
        }

    def _parts(self) -> dict[str, dict[str, Demand]]:
        held = self._held(self._clock.now())
        return {
            pool: {SENT: self._sent(pool), HELD: total([held.get(pool, ())])}
            for pool in self._situation().options.by_pool
        }

    def _sent(self, pool: str) -> Demand:
        reports = self._situation().view.reports(pool)
        taken = [report.demand_s for report in reports]
        told = [report.unread_s for report in reports if report.unread is not None]
        return total([*taken, *(told or [self._orphaned.due(pool)])])

    def _unread(self, pool: str) -> int | None:
        reports = self._situation().view.reports(pool)
        told = [report.unread for report in reports if report.unread is not None]
        if not told:
            return self._orphaned.requests(pool)
        return sum(told) if len(told) == len(reports) else None

    def _held(self, now: float) -> dict[str, tuple[float, ...]]:
        work: dict[str, list[tuple[float, float]]] = {}
        for windows in self._batcher.windows():
            for members in windows.groups():
                sample = [m.profile for _, m in zip(range(SAMPLED_MAX), members, strict=False)]
                option = self._cheapest(sample[0])
                if option is None:
                    continue
                each = len(members) / len(sample)
                found = work.setdefault(option.pool, [])
                found += [(device_s(p, option) * each, p.deadline) for p in sample]
        return {pool: demand(found, now) for pool, found in work.items()}

    def _cheapest(self, profile: Profile) -> Option | None:
        here = self._situation()
        floor = here.policy.floor_of(profile)
        able = [
            option
            for option in here.options.by_model.get(profile.model, ())
            if refusal(profile, option, floor) is None
            and not here.policy.is_never(option)
            and refused_by(here.policy.rules, profile, option) is None
        ]
        tokens = (profile.input_tokens, profile.answers * profile.output_tokens)
        return min(
            able, key=lambda o: (o.cost_usd(device_s(profile, o), *tokens), o.pool), default=None
        )
