"""The newest heartbeat of each worker."""

from policies.fleet_state.view import is_live
from topics import PoolStatus

# A worker silent for this long is forgotten.
FORGOTTEN_S = 3600.0


class Workers:
    """Heartbeats by pool and instance."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, PoolStatus]] = {}

    def take(self, status: PoolStatus) -> None:
        """Add a heartbeat."""
        self._reports.setdefault(status.pool, {})[status.instance] = status

    def pools(self) -> set[str]:
        """Return the pools that have reported."""
        return set(self._reports)

    def newest(self, pool: str) -> PoolStatus | None:
        """Return the newest heartbeat of a pool, whatever its state; None if there is none."""
        reports = self._reports.get(pool, {})
        return max(reports.values(), key=lambda s: s.at, default=None)

    def live(self, pool: str, now: float) -> list[PoolStatus]:
        """Return the newest heartbeat of each worker of a pool that still reports."""
        return [s for s in self._reports.get(pool, {}).values() if is_live(s, now)]

    def forget(self, now: float) -> None:
        """Drop the workers that have long been silent, and those of a time far from now."""
        for pool, reports in list(self._reports.items()):
            for name in [n for n, s in reports.items() if abs(now - s.at) > FORGOTTEN_S]:
                del reports[name]
            if not reports:
                del self._reports[pool]
