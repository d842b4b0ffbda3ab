"""`kill -9` of real processes and of a real broker under load: nothing lost, nothing doubled."""

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest
from aiokafka.errors import KafkaError
from running_system import System, chat
from verdict import POLICY_SPEED, TIMEOUTS, problems, supervise, trail_problems

from topics.embedded_broker.broker import EmbeddedBroker

pytestmark = pytest.mark.kafka

# A run that failed is repeated with its seed: CHAOS_SEED=... pytest tests/chaos
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 2**31)
VICTIMS = ("router", "router", "premium-eu", "lpddr-us")
PAUSE_S = 0.06


def a_system(bootstrap_servers: str, prefix: str, directory: Path) -> System:
    return System(
        bootstrap_servers, prefix, directory, extra_env=TIMEOUTS, policy_speed=POLICY_SPEED
    )


async def publish(system: System, ids: list[str]) -> None:
    """Publish half of the requests to be served at once, and half that may wait."""
    for index, request_id in enumerate(ids):
        request = chat(request_id, **({"task": "summarization"} if index % 2 else {}))
        while True:
            with contextlib.suppress(KafkaError):
                # An idempotent producer: a resend after a broker's death is no second request.
                await system.publish(request)
                break
        await asyncio.sleep(PAUSE_S)


async def check(system: System, ids: list[str]) -> None:
    """Every request has one result, one end in the evidence, and no dead letter."""
    await system.wait_for_results(ids, timeout_s=120)
    # Whatever would come twice has come by the time that another request has gone all the way.
    await system.publish(chat("last"))
    await system.wait_for_results(["last"])
    found = problems(system, [*ids, "last"]) + await trail_problems(system)
    assert not found, f"CHAOS_SEED={SEED}\n{found[:20]}\n{system.logs()}"


async def test_killed_processes(kafka: str, prefix: str, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"CHAOS_SEED={SEED}")
    ids = [f"r-{i}" for i in range(200)]
    async with a_system(kafka, prefix, tmp_path) as system:
        system.start_all()
        publishing = asyncio.create_task(publish(system, ids))
        for _ in range(5):
            await asyncio.sleep(rng.uniform(1, 3))
            victim = rng.choice(VICTIMS)
            system.kill(victim)
            await asyncio.sleep(rng.uniform(0, 0.5))
            system.start(victim)
        await publishing
        await check(system, ids)


@pytest.mark.slow
async def test_a_killed_broker(prefix: str, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"CHAOS_SEED={SEED}")
    ids = [f"b-{i}" for i in range(200)]
    with EmbeddedBroker(data_dir=tmp_path / "kafka") as broker:
        async with a_system(broker.bootstrap_servers, prefix, tmp_path) as system:
            system.start_all()
            supervising = asyncio.create_task(supervise(system))
            publishing = asyncio.create_task(publish(system, ids))
            for _ in range(2):
                await asyncio.sleep(rng.uniform(4, 6))
                await asyncio.to_thread(broker.kill)
                system.kill(rng.choice(VICTIMS))
                await asyncio.to_thread(broker.start)
            await publishing
            await check(system, ids)
            supervising.cancel()
