"""A gateway as a process of its own, before a system of real processes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
from forked import FORKER, Forked
from model_server import Behaviour, Exchange, good
from openai import AsyncOpenAI
from running_system import System, eventually

from topics.embedded_broker.settings import free_port

MODEL, EMBEDDER, GUARD, SIMULATED = "served-8b", "served-embedder", "served-guard", "sim-8b"
SHAPE = {"parameters_b": 8.03, "layers": 32, "kv_heads": 8, "head_dim": 128}
KEY = "key-of-acme"
# What runs at the server and never ends by itself.
HELD: list[Exchange] = []


def fleet(base_url: str) -> dict[str, Any]:
    """A pool before a real server, and a simulated one that is short of context."""

    def served(model: str) -> dict[str, Any]:
        return {"model": model, "variant": f"{model}-fp8", "precision": "fp8", "max_batch": 64}

    device = {"device": "h200", "count": 1}
    return {
        "models": {
            MODEL: SHAPE | {"context_tokens": 131072},
            EMBEDDER: SHAPE | {"context_tokens": 8192, "operations": ["embeddings"]},
            GUARD: SHAPE | {"context_tokens": 8192, "operations": ["moderations"]},
            SIMULATED: SHAPE | {"context_tokens": 2048},
        },
        "pools": {
            "served-eu": device
            | {"region": "eu-west", "serves": [served(m) for m in (MODEL, EMBEDDER, GUARD)]}
            | {"backend": {"type": "openai", "base_url": base_url}},
            "sim-us": device
            | {"region": "us-east", "serves": [served(SIMULATED)]}
            | {"backend": {"type": "simulated", "time_scale": 20}},
        },
    }


@dataclass
class Door:
    """A gateway's process, and where it answers."""

    system: System
    port: int
    process: Forked

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> AsyncOpenAI:
        """OpenAI's own client, which tries nothing again."""
        given = {"api_key": KEY, "max_retries": 0, "timeout": 60.0} | options
        return AsyncOpenAI(base_url=f"{self.url}/v1", **given)

    def kill(self) -> None:
        """Kill it without a word."""
        self.process.kill()
        self.process.wait()


def opened_door(system: System, port: int, **env: str) -> Door:
    """Start a gateway; it answers some time later."""
    with (system.directory / f"gateway-{port}.log").open("ab") as log:
        own = {
            "SHUNTER_FLEET": str(system.directory / "fleet.yaml"),
            "SHUNTER_POLICY": str(system.directory / "policy.yaml"),
            "SHUNTER_GATEWAY_PORT": str(port),
        }
        environment = os.environ | system.env | own | env
        process = FORKER.start(["gateway"], environment, stderr=log.fileno())
    return Door(system, port, process)


@contextlib.asynccontextmanager
async def door(system: System, **env: str) -> AsyncIterator[Door]:
    """Run a gateway until the end of the block, unless it was killed."""
    opened = opened_door(system, free_port(), **env)
    process = opened.process

    async def is_ready() -> bool:
        assert process.poll() is None, system.logs()
        with contextlib.suppress(httpx2.TransportError):
            async with httpx2.AsyncClient() as asking:
                return (await asking.get(f"{opened.url}/readyz")).status_code == 200
        return False

    try:
        await eventually(is_ready, "the gateway is ready", 120)
        yield opened
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 90) == 0, system.logs()


async def warm_up(client: AsyncOpenAI) -> None:
    """Wait until there is an answer, however long the processes take to start."""
    await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        extra_headers={"X-Shunter-Deadline": "5m"},
    )


def told(body: Any) -> str:
    """The last text of a conversation."""
    return str(body["messages"][-1]["content"]) if "messages" in body else ""


async def as_told(x: Exchange) -> None:
    """Answer as the conversation says: ``hold``, ``stall`` and ``break`` end after a piece."""
    said = told(x.body)
    if said == "refuse":
        error = {"message": "no", "type": "invalid_request_error", "param": "n", "code": "odd"}
        await x.json({"error": error}, status=400)
    elif said == "hold":
        await x.events()
        await x.event(x.piece("one "))
        HELD.append(x)
        try:
            await asyncio.sleep(3600)
        finally:
            HELD.remove(x)
    elif said in {"stall", "break"}:
        await x.events()
        await x.event(x.piece("one "))
        if said == "break":
            x.writer.close()
    else:
        await good(x)


BEHAVIOUR: Behaviour = as_told
