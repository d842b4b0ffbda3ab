"""A Kafka that goes away: no process is ready meanwhile, each lives, and each can be stopped.

It comes back where it was, or elsewhere: then the bootstrap address alone still leads to it.
"""

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest
from gateway_cases import opened_door
from proxy import Proxy
from running_system import System, chat, eventually
from served_pages import asked

from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.settings import free_port

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

# A limit of 8 s without an answer, and a busy machine.
STOPPED_S_MAX = 15.0


async def test_processes_outlive_a_kafka_that_is_away_are_not_ready_and_can_be_stopped(
    tmp_path: Path,
) -> None:
    ports = {name: free_port() for name in ("router", "premium-eu", "gateway")}
    env_of = {name: {"SHUNTER_WEB_PORT": str(port)} for name, port in ports.items()}

    async def all_say(path: str, status: int) -> bool:
        with contextlib.suppress(OSError):
            return all([(await asked(port, path))[0] == status for port in ports.values()])
        return False

    front = free_port()
    with EmbeddedBroker(data_dir=tmp_path / "kafka") as broker, contextlib.ExitStack() as ways:
        ways.enter_context(Proxy(front, broker.port))
        prefix = f"away-{os.getpid()}"
        async with System(
            f"127.0.0.1:{front}", prefix, tmp_path, env_of=env_of, policy_speed=1.0
        ) as system:
            system.start("router", "premium-eu")
            system.processes["gateway"] = opened_door(system, ports["gateway"]).process
            await system.warm_up()
            await eventually(lambda: all_say("/readyz", 200), "all are ready", 60)
            broker.kill()
            await eventually(lambda: all_say("/readyz", 503), "none is ready", 60)
            for port in ports.values():
                assert "no Kafka broker answers" in (await asked(port, "/readyz"))[1]["reason"]
            assert await all_say("/healthz", 200)
            await asyncio.to_thread(broker.start)
            await eventually(lambda: all_say("/readyz", 200), "all are ready again", 60)
            await system.publish(chat("after", deadline=time.time() + 60))
            await system.wait_for_results(["after"])
            ways.close()
            await asyncio.to_thread(broker.stop)
            broker.port = free_port()
            await asyncio.to_thread(broker.start)
            ways.enter_context(Proxy(front, broker.port))
            await eventually(lambda: all_say("/readyz", 200), "all have found it elsewhere", 60)
            await system.publish(chat("elsewhere", deadline=time.time() + 60))
            await system.wait_for_results(["elsewhere"])
            # What runs can't be told to a broker that is gone.
            running = chat("running", deadline=time.time() + 60)
            running["body"]["max_tokens"] = 4000
            await system.publish(running)
            await asyncio.sleep(0.3)
            broker.kill()
            began = time.monotonic()
            assert set((await asyncio.to_thread(system.stop)).values()) == {0}
            assert time.monotonic() - began < STOPPED_S_MAX
            assert not system.ended()
            await asyncio.to_thread(broker.start)
