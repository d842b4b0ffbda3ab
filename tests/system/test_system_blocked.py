"""A client leaves a transaction open on ingest: a real router tells of it, and goes on after it."""

import asyncio
import time
import urllib.request
from pathlib import Path

import pytest
from open_client import client_that_hangs, take_over
from running_system import System, chat, eventually

from topics.embedded_broker.settings import free_port

pytestmark = pytest.mark.kafka


@pytest.mark.slow
async def test_a_router_tells_which_client_blocks_a_partition_and_serves_what_was_behind(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    port, client = free_port(), f"{prefix}-client"
    env = {"SHUNTER_WEB_PORT": str(port), "SHUNTER_TRANSACTION_TIMEOUT_MS": "3000"}
    # Slower than others: what waits behind the transaction is late, and must not be too late.
    async with System(kafka, prefix, tmp_path, env_of={"router": env}, policy_speed=0.1) as system:
        system.start_all()
        topic = system.catalogue.requests

        def logged() -> str:
            return (tmp_path / "router.log").read_text()

        def gauge() -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                lines = page.read().decode().splitlines()
            name = f'shunter_partition_blocked_seconds{{messaging_destination_name="{topic}"}} '
            return float(next((line for line in lines if line.startswith(name)), "- 0").split()[1])

        async with client_that_hangs(kafka, topic, client, 60_000):
            await system.publish(chat("behind", deadline=time.time() + 600), partition=0)

            async def told() -> bool:
                return f"{topic}[0] is blocked at offset 0" in logged()

            await eventually(told, "a warning", timeout_s=55)
        (line,) = [each for each in logged().splitlines() if "is blocked at" in each]
        assert f"transactional id '{client}'" in line
        assert line.endswith(f"forceTerminateTransaction --transactionalId {client}")
        assert await asyncio.to_thread(gauge) > 10
        await asyncio.to_thread(take_over, kafka, client)
        await system.wait_for_results(["behind"])
        assert system.result("behind")["status"] == "completed"

        async def over() -> bool:
            return "is blocked at offset 0 no longer" in logged()

        await eventually(over, "the end of the block")
        assert await asyncio.to_thread(gauge) == 0


async def test_a_router_that_may_not_have_transactions_so_long_says_what_to_set(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    env = {"SHUNTER_TRANSACTION_TIMEOUT_MS": "60001"}
    async with System(kafka, prefix, tmp_path, env_of={"router": env}) as system:
        system.start("router")
        status = await asyncio.to_thread(system.processes["router"].wait, 90)
        told = (tmp_path / "router.log").read_text()
    assert status == 1
    assert "Kafka refuses SHUNTER_TRANSACTION_TIMEOUT_MS=60001: it is more than" in told
