"""Pauses between tries grow up to a limit."""

import asyncio

import pytest
from simulation.loop import VirtualLoop

from streams.kafka.pauses import GROWTH, Pauses


def test_each_pause_is_longer_than_the_last_until_the_longest() -> None:
    async def waited() -> list[float]:
        pauses, loop = Pauses(0.01, 0.03), asyncio.get_running_loop()
        took = []
        for _ in range(5):
            began = loop.time()
            await pauses.pause()
            took.append(loop.time() - began)
        return took

    wanted = [0.01, 0.01 * GROWTH, 0.01 * GROWTH**2, 0.03, 0.03]
    assert VirtualLoop().finish(waited()) == pytest.approx(wanted)
