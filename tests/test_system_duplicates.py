"""Duplicates on real Kafka, through real processes."""

import asyncio
import os
import sys
from pathlib import Path

import orjson
import pytest
from system import System, chat

pytestmark = pytest.mark.kafka

# Only this client's Python parser can send a header name that is not UTF-8.
UNREADABLE = """
import asyncio, sys
from aiokafka import AIOKafkaProducer
class NotText(str):
    def encode(self, *_): return b"\\xff\\xfe"
async def main(servers, topic, value):
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        await producer.send_and_wait(
            topic, value.encode(), key=b"odd", partition=0, headers=[(NotText("x"), b"v")])
asyncio.run(main(*sys.argv[1:]))
"""


async def publish_unreadable(system: System) -> None:
    publisher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        UNREADABLE,
        system.bootstrap_servers,
        system.catalogue.requests,
        orjson.dumps(chat("odd")).decode(),
        env=os.environ | {"AIOKAFKA_NO_EXTENSIONS": "1"},
    )
    assert await publisher.wait() == 0


async def test_a_request_published_again_is_served_once_even_by_another_router(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """The new router reads back what its killed predecessor had, a record it can't decode too."""
    async with System(kafka, prefix, tmp_path) as system:
        system.start_all()
        for request_id in ("a", "b", "a"):
            await system.publish(chat(request_id), partition=0)
        await publish_unreadable(system)
        await system.publish(chat("c"), partition=0)
        await system.wait_for_results(["a", "b", "c"])
        system.kill("router")
        system.start("router")
        for request_id in ("b", "c", "odd", "d"):
            await system.publish(chat(request_id), partition=0)
        await system.wait_for_results(["a", "b", "c", "d", "odd"])
        for request_id, steps in {
            "a": ["duplicate", "executed", "placed"],
            "b": ["duplicate", "executed", "placed"],
            "c": ["duplicate", "executed", "placed"],
            # What was a dead letter was no request, and is none's first.
            "odd": ["dead_lettered", "executed", "placed"],
            "d": ["executed", "placed"],
        }.items():
            assert sorted(system.steps(request_id)) == steps, system.logs()
            assert system.result(request_id)["status"] == "completed"
        (evidence,) = [
            e for e in system.evidence if (e["request_id"], e["step"]) == ("a", "duplicate")
        ]
        assert evidence["message"].endswith(f"{system.catalogue.requests}/0@0")
        assert len(system.dead_letters) == 1
