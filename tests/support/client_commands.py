"""The client's commands as tests run them, and records for them to read."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import typer
from aiokafka import AIOKafkaProducer
from click.testing import Result as Outcome
from typer.testing import CliRunner

from shunter.commands.audit import audit
from shunter.commands.cancel import cancel
from shunter.commands.results import results
from shunter.commands.submit import submit
from shunter.commands.topics import topics
from topics import (
    Batch,
    Candidate,
    Cost,
    Envelope,
    Evidence,
    Fallback,
    Hold,
    Placement,
    Response,
    Result,
    Settings,
    Source,
    Tag,
    Timing,
    Usage,
)
from topics.admin.provisioning import apply

PLACEMENT = Placement(
    "lpddr-eu", "crescent-island", "llama-3.1-8b-int8", "int8", "eu-west", "batch", "b-17"
)
CANDIDATES = (
    Candidate(
        "lpddr-eu",
        "llama-3.1-8b-int8",
        "int8",
        "eu-west",
        "hold",
        0.0000123,
        12.5,
        20.0,
        0.05,
        0.991,
    ),
    Candidate(
        "premium-eu",
        "llama-3.1-8b-fp8",
        "fp8",
        "eu-west",
        "direct",
        0.0000523,
        0.12,
        1.25,
        0.01,
        0.999,
    ),
    Candidate(
        "silicon-us",
        "llama-3.1-8b-fp4",
        "fp4",
        "us-east",
        "direct",
        refused="region",
    ),
)

app = typer.Typer()
app.command()(cancel)
app.command()(submit)
app.command()(results)
app.add_typer(topics)
app.add_typer(audit)


async def installation(kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of an installation whose topics exist; the commands read the same ones."""
    monkeypatch.setenv("SHUNTER_BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("SHUNTER_TOPIC_PREFIX", prefix)
    made = Settings()
    await apply(made, ())
    return made


async def shunter(*args: object, stdin: bytes | None = None) -> Outcome:
    """Run a command in a thread: it has an event loop of its own."""
    runner = CliRunner()
    return await asyncio.to_thread(runner.invoke, app, [*map(str, args)], input=stdin)


def request(name: str, **fields: Any) -> bytes:
    body = {"model": "llama-3.1-8b", "messages": []}
    return json.dumps({"id": name, "body": body} | fields).encode()


def result(name: str, status: Any = "completed") -> Result:
    return Result(
        id=name,
        status=status,
        timing=Timing(1_790_000_000.0, finished_at=1_790_000_001.5),
        response=Response(200, {"answer": "forty-two"}),
        placement=PLACEMENT,
        usage=Usage(12, 34),
        cost=Cost(0.0000123, 0.00002),
    )


@asynccontextmanager
async def producing(settings: Settings, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write(settings: Settings, topic: str, key: str, *values: bytes) -> None:
    async with producing(settings) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=key.encode())


async def started(*args: object) -> asyncio.subprocess.Process:
    """Start a command in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from client_commands import app; app()",
        *map(str, args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def ended(command: asyncio.subprocess.Process) -> None:
    if command.returncode is None:
        command.kill()


def evidence(name: str = "r-1") -> list[Evidence]:
    """The steps of a request that was held, released, fell back, and was served elsewhere."""
    common: dict[str, Any] = {
        "request_id": name,
        "writer": "router-0",
        "source": Source("inference.requests", 2, 15),
        "tenant": "acme",
        "model": "llama-3.1-8b",
        "policy_version": "p-12ab",
        "fleet_version": "f-98ef",
    }
    promised = Envelope(0.0000123, 12.5, 20.0, 0.05, 0.991)
    return [
        Evidence(
            step="held",
            at=1_790_000_000.0,
            tags={"output_length": Tag(100, "client", 0.7)},
            candidates=CANDIDATES,
            promised=promised,
            reason="waiting_is_cheapest",
            **common,
        ),
        Evidence(
            step="released",
            at=1_790_000_012.25,
            placement=PLACEMENT,
            promised=promised,
            batch=Batch("b-17", 2, 8),
            hold=Hold("llama/eu/8k", "full", 12.25, 30.1),
            reason="full",
            **common,
        ),
        Evidence(
            step="fell_back",
            at=1_790_000_013.0,
            placement=PLACEMENT,
            fallback=Fallback("lpddr-eu", "overloaded"),
            reason="overloaded",
            **common,
        ),
        Evidence(
            step="executed",
            at=1_790_000_019.0,
            placement=PLACEMENT,
            promised=promised,
            got=Envelope(0.0000119, 12.4, 19.0, 0.048),
            usage=Usage(120, 100, 20),
            **common,
        ),
    ]
