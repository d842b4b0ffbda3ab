"""The hardware of a simulation: takes a while, fails at times, is slow or silent for a while."""

import asyncio
from typing import TYPE_CHECKING

from topics import Response, Usage
from workers.backends.base import Call, CallError, Load, Outcome, Retry

if TYPE_CHECKING:
    from simulation.process import Process

# What may fail at a backend: the share of calls that another pool may serve, and of those none can.
ELSEWHERE, NOWHERE = 0.08, 0.04


class SimBackend:
    """Answers with the request's id."""

    def __init__(self, process: "Process", pool: str) -> None:
        self._process = process
        self._pool = pool

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def probe(self, variant: str) -> None:
        """Never asked: no failure here is the pool's fault."""

    def load(self) -> Load:
        return Load(0.0, {})

    async def execute(self, call: Call) -> Outcome:
        world, process = self._process.world, self._process
        began_at, luck = process.now(), world.rng.random()
        try:
            await asyncio.sleep(world.rng.uniform(0.02, 0.8) * world.slowness[self._pool])
        except asyncio.CancelledError:
            call.meter.add(0.02, 20)
            raise
        if world.faults.is_silent(self._pool):
            await world.healed.wait()
            raise CallError("timeout", "the device never answered", retry="elsewhere")
        if luck < ELSEWHERE + NOWHERE:
            call.meter.add(0.05, 20, 3)
            retry: Retry = "elsewhere" if luck < ELSEWHERE else "never"
            raise CallError("scripted", "as the dice fell", retry=retry)
        return Outcome(
            Response(200, {"id": call.request.id}),
            Usage(20, 10),
            started_at=began_at,
            first_token_at=began_at,
            finished_at=process.now(),
            device_s=0.1,
        )
