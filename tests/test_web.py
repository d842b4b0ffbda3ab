"""The web server of a process is for its own machine, unless told otherwise."""

import asyncio
import urllib.request
from pathlib import Path

import pytest
from system import System, eventually

from topics.broker_settings import free_port

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


async def answers(host: str, port: int) -> bool:
    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    return await asyncio.to_thread(ask)
