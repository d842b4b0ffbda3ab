"""Faults: what is done to a running system, one at a time."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from system import System

from topics.broker import EmbeddedBroker

Fault = Callable[[System, EmbeddedBroker, random.Random], Awaitable[None]]

POOLS = ("premium-eu", "lpddr-us")
# Longer than the session timeout of the run, so that the group gives the partitions away.
STOPPED_S = 8.0


async def kill_router(system: System, _broker: EmbeddedBroker, _rng: random.Random) -> None:
    """`kill -9` of the router and batcher, started again at once"""
    system.kill("router")
    system.start("router")


async def kill_worker(system: System, _broker: EmbeddedBroker, rng: random.Random) -> None:
    """`kill -9` of a worker, started again at once"""
    victim = rng.choice(POOLS)
    system.kill(victim)
    system.start(victim)


async def kill_all(system: System, _broker: EmbeddedBroker, _rng: random.Random) -> None:
    """`kill -9` of router and workers together, started again at once"""
    for name in list(system.processes):
        system.kill(name)
    system.start_all()


async def stop_router(system: System, _broker: EmbeddedBroker, _rng: random.Random) -> None:
    """SIGSTOP of the router for 8 s, beyond its session timeout of 6 s, then SIGCONT"""
    await _freeze(system, "router")


async def stop_worker(system: System, _broker: EmbeddedBroker, rng: random.Random) -> None:
    """SIGSTOP of a worker for 8 s, beyond its session timeout of 6 s, then SIGCONT"""
    await _freeze(system, rng.choice(POOLS))


async def _freeze(system: System, name: str) -> None:
    process = system.processes[name]
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    process.send_signal(signal.SIGCONT)


async def restart_rolling(system: System, _broker: EmbeddedBroker, _rng: random.Random) -> None:
    """SIGTERM of every process, one after the other, each started again when it has ended"""
    for name in list(system.processes):
        process = system.processes[name]
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait)
        system.start(name)


async def kill_broker(_system: System, broker: EmbeddedBroker, _rng: random.Random) -> None:
    """`kill -9` of the only broker, started again at once"""
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)


async def restart_broker(_system: System, broker: EmbeddedBroker, _rng: random.Random) -> None:
    """SIGTERM of the only broker, started again when it has ended"""
    await asyncio.to_thread(broker.restart)


FAULTS: tuple[Fault, ...] = (
    kill_router,
    kill_worker,
    kill_all,
    stop_router,
    stop_worker,
    restart_rolling,
    kill_broker,
    restart_broker,
)
