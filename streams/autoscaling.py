"""The autoscaling signal of every pool, as JSON for KEDA and as metrics."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from policies import Option, Situation, refused_by
from policies.autoscaling import SAMPLED_MAX, demand, device_s, replicas_needed, total
from policies.constraints import refusal
from streams.batcher import Batcher
from streams.clock import Clock
from streams.metrics import catalogue as m
from streams.metrics.gauges import Readings
from topics import Profile
from topics.status import DUE_S


class AutoscalingSignal:
    """What each pool has to do and what it needs for that, as this router sees it.

    It counts what live workers have taken, by their heartbeats, and what is held on this router's
    partitions, at the cheapest pool that may serve it: so a pool without a worker is told to have
    one. What waits unread in a lane, beyond what its workers have taken, is lag of their group.
    """

    def __init__(self, situation: Callable[[], Situation], batcher: Batcher, clock: Clock) -> None:
        self._situation = situation
        self._batcher = batcher
        self._clock = clock

    def pools(self) -> dict[str, dict[str, Any]]:
        """Return the signal of each pool.

        ``replicas_needed`` is a fraction, ``workers_needed`` rounded up to whole workers of the
        pool; ``device_s`` is device time by when it is due, in seconds.
        """
        now = self._clock.now()
        held = self._held(now)
        return {
            pool: self._signal(pool, options[0], held.get(pool, ()))
            for pool, options in self._situation().options.by_pool.items()
        }

    def gauges(self) -> Readings:
        """Yield the metrics, made when they are asked for."""
        for pool, signal in self.pools().items():
            yield m.REPLICAS_NEEDED, (pool,), signal["replicas_needed"]
            yield m.WORKERS, (pool,), signal["workers"]
            for due_s, seconds in signal["device_s"].items():
                yield m.BACKLOG, (pool, due_s), seconds

    def _signal(self, pool: str, option: Option, held: Iterable[float]) -> dict[str, Any]:
        reports = self._situation().view.reports(pool)
        due = total([*(report.demand_s for report in reports), tuple(held)])
        needed = replicas_needed(due)
        return {
            "workers": len(reports),
            "replicas_needed": round(needed, 4),
            "workers_needed": math.ceil(needed / option.replicas),
            "device_s": {f"{bound:g}": round(s, 4) for bound, s in zip(DUE_S, due, strict=True)},
        }

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
        able = [
            option
            for option in here.options.by_model.get(profile.model, ())
            if refusal(profile, option) is None
            and refused_by(here.policy.rules, profile, option) is None
        ]
        return min(able, key=lambda o: (device_s(profile, o) * o.usd_per_s, o.pool), default=None)
