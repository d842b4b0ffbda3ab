"""The web server of a process is for its own machine, unless told otherwise."""

import asyncio
import time
import urllib.request
from pathlib import Path

import orjson
import pytest
from model_server import Exchange, good, serving
from running_system import FLEET, System, chat, eventually

from topics.embedded_broker.settings import free_port

pytestmark = pytest.mark.kafka


# 127.0.0.2 is this machine too, and a server that listens on every address answers there.
@pytest.mark.parametrize(
    ("host", "elsewhere"),
    [(None, False), ("0.0.0.0", True)],  # noqa: S104  what must not be the default
)
async def test_health_is_told_on_loopback_alone(
    kafka: str, prefix: str, tmp_path: Path, host: str | None, elsewhere: bool
) -> None:
    port = free_port()
    env = {"SHUNTER_WEB_PORT": str(port)} | ({"SHUNTER_WEB_HOST": host} if host else {})
    async with System(kafka, prefix, tmp_path, extra_env=env) as system:
        system.start("router")

        async def healthy() -> bool:
            return await answers("127.0.0.1", port)

        await eventually(healthy, "the router is healthy", 60)
        assert await answers("127.0.0.2", port) is elsewhere


async def test_a_worker_is_ready_when_its_server_answers_and_a_router_tells_what_pools_need(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    ports = {"router": free_port(), "premium-eu": free_port()}
    env_of = {name: {"SHUNTER_WEB_PORT": str(port)} for name, port in ports.items()}
    well = False

    async def model(x: Exchange) -> None:
        if well:
            await good(x)
        else:
            await x.json({"error": "loading"}, 503)

    async with serving(model) as server:
        pool = FLEET["pools"]["premium-eu"]
        backend = {"type": "openai", "base_url": server.base_url}
        fleet = {"pools": {"premium-eu": pool | {"backend": backend}}}
        async with System(
            kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0, env_of=env_of
        ) as system:
            system.start_all()
            port = ports["premium-eu"]

            async def is_up() -> bool:
                return await answers("127.0.0.1", port)

            async def is_ready() -> bool:
                return await answers("127.0.0.1", port, "/readyz")

            async def is_routing() -> bool:
                return await answers("127.0.0.1", ports["router"])

            await eventually(is_up, "the worker is healthy", 60)
            assert not await is_ready()
            await eventually(is_routing, "the router is healthy", 60)
            # What nobody serves yet is held, and tells that the pool needs a worker.
            await system.publish(chat("held", deadline=time.time() + 60))

            async def is_needed() -> bool:
                url = f"http://127.0.0.1:{ports['router']}/autoscaling"
                page = await asyncio.to_thread(urllib.request.urlopen, url, timeout=60)
                with page:
                    pools = orjson.loads(page.read())["pools"]
                return bool(pools["premium-eu"]["workers_needed"] == 1)

            await eventually(is_needed, "the pool needs a worker", 20)
            assert await answers("127.0.0.1", ports["router"], "/metrics")
            well = True
            await eventually(is_ready, "the worker is ready", 20)
            await system.wait_for_results(["held"])
            assert system.result("held")["status"] == "completed"


async def answers(host: str, port: int, path: str = "/healthz") -> bool:
    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=60) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    return await asyncio.to_thread(ask)
