"""The traffic of a demo: lanes opened, the machine measured, the trace replayed."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies import Fleet, Policy
from shunter.client.kafka import Tail
from shunter.console import UserError
from shunter.demo.machine import Measure, probes
from shunter.demo.replay import replay
from shunter.demo.show import Show
from shunter.demo.system import System, log_tail
from shunter.demo.trace import TraceRow
from shunter.demo.warmup import publish, publish_at_once, warm_ups
from shunter.demo.watch import Watch
from topics import Settings

# The longest start, on a slow machine; with 2 cores it is 8 s.
START_S_MAX = 60.0
# After this long without progress, there will be none.
QUIET_S_MAX = 30.0
SETTLE_S_MAX = 10.0
POLL_S = 0.2
# The first finds processes that have just begun; of the others the quickest counts, since each may
# meet something else that this machine does for a moment.
BURSTS = 4


@dataclass(slots=True)
class Traffic:
    """Requests that are sent to a running system, and followed until their end."""

    settings: Settings
    run_dir: Path
    fleet: Fleet
    policy: Policy
    system: System
    watch: Watch
    show: Show
    reader: Tail
    openings: int = field(default=0, init=False)

    async def open_lanes(self) -> None:
        """Return once each direct lane of the fleet has served a request.

        Raises:
            UserError: one does not in time.
        """
        if not await self._until(self.watch.pools_up, START_S_MAX):
            down = self.watch.silent_pools() or list(self.fleet.pools)
            raise UserError(self._not_ready(f"{', '.join(down)}: no report", down[0]))
        self.openings += 1
        name = f"warmup-{self.openings}"
        requests = list(warm_ups(self.fleet, self.settings.partitions, name))
        await publish(self.settings, requests)
        await self._until_done({each.id for each in requests})

    async def measure(self) -> Measure:
        """Send bursts through the whole path, and return what came of the quickest but the first.

        Raises:
            UserError: one does not come through, or the fleet serves no embeddings.
        """
        took_s = []
        for number in range(BURSTS):
            burst = list(probes(self.fleet, f"probe-{number}"))
            if not burst:
                raise UserError("the fleet serves no embeddings, to measure with: give --speed")
            began_at = await publish_at_once(self.settings, burst)
            names = {each["id"] for each in burst}
            await self._until_done(names)
            took_s.append(max(self.watch.warm[name] for name in names) - began_at)
        return Measure(len(burst), min(took_s[1:]))

    async def replay(
        self, rows: Sequence[TraceRow], requests: Mapping[str, Mapping[str, Any]], speed: float
    ) -> None:
        """Return when each request has an end, or nothing moves any more.

        Args:
            rows: of the trace, by arrival.
            requests: those to send, by id.
            speed: the trace's seconds in one of ours.
        """
        pairs = [(row, requests[row.id]) for row in rows]
        publishing = asyncio.create_task(
            replay(self.settings, pairs, speed, self.watch.acknowledged)
        )
        self.watch.moved_at = time.monotonic()
        try:
            while len(self.watch.finished) < len(pairs):
                await self._turn()
                if publishing.done():
                    publishing.result()
                if time.monotonic() - self.watch.moved_at > self._quiet_s_max(speed):
                    self._tell_missing(rows, speed)
                    return
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        await self._until(self.watch.idle, SETTLE_S_MAX)

    def _quiet_s_max(self, speed: float) -> float:
        """Return the longest expected quiet time: a window that fills no more ends by itself."""
        if self.watch.held <= 0:
            return QUIET_S_MAX
        windows = [workload.window_s for workload in self.policy.classes.values()]
        return QUIET_S_MAX + max(windows) / speed

    def _tell_missing(self, rows: Sequence[TraceRow], speed: float) -> None:
        missing = [row for row in rows if row.id not in self.watch.finished]
        tasks = sorted({row.task for row in missing})
        self.show.say(
            f"Nothing has moved for {self._quiet_s_max(speed):g} s: {len(missing)} of"
            f" {len(rows)} requests have no result ({', '.join(tasks)};"
            f" {missing[0].id} is the first), {self.watch.held} wait for a batch."
            f" Logs: {self.run_dir}"
        )

    async def _until_done(self, wanted: set[str]) -> None:
        if not await self._until(lambda: wanted <= self.watch.warm.keys(), START_S_MAX):
            missing = ", ".join(sorted(wanted - self.watch.warm.keys()))
            raise UserError(self._not_ready(f"{missing}: no result", "router"))

    def _not_ready(self, what: str, member: str) -> str:
        log = self.run_dir / f"{member}.log"
        return f"{what} within {START_S_MAX:g} s; {log} ends with:\n{log_tail(log)}"

    async def _until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > end:
                return False
            await self._turn()
        return True

    async def _turn(self) -> None:
        for record in await self.reader.poll(POLL_S):
            self.watch.take(record)
        self.system.tend()
        self.show.update(self.watch)
