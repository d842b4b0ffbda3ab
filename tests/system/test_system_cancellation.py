"""Cancellation on real Kafka, through real processes and the command."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from forked import ran
from running_system import FLEET, System, chat, eventually, publish_unreadable

from shunter.client.kafka import read_by_key

pytestmark = pytest.mark.kafka

# At the pace of the real device, so that a long answer takes a minute.
SLOW_FLEET: dict[str, Any] = {
    "pools": {
        "premium-eu": FLEET["pools"]["premium-eu"] | {"backend": {"type": "simulated"}},
    }
}


async def cancel(system: System, request_id: str, *options: str) -> None:
    where = ("--bootstrap-servers", system.bootstrap_servers, "--topic-prefix", system.prefix)
    done = await asyncio.to_thread(partial(ran, "cancel", request_id, *options, *where, env={}))
    assert done.returncode == 0, done.stderr


async def wait_for_step(system: System, request_id: str, step: str) -> None:
    async def there() -> bool:
        await system.read()
        return step in system.steps(request_id)

    await eventually(there, f"{request_id} is {step}")


async def test_a_held_request_is_cancelled_and_an_unknown_one_is_evidenced(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        # Without a worker all of them wait; the window lets none of them expire meanwhile.
        system.start("router")
        window = {"task": "synthetic_data", "hints": {"batchable": True}}
        for request_id in ("a", "b"):
            await system.publish(chat(request_id, **window))
            await wait_for_step(system, request_id, "held")
        # A key that is no id is no harm to those who follow.
        topic = system.catalogue.cancellations
        await system.producer.send_and_wait(topic, b"x", key=b"\xff", partition=0)
        # Nor is one that the client can't decode: it counts like any other.
        await publish_unreadable(system, topic, b"odd", b"{}")
        await cancel(system, "nobody")
        await cancel(system, "a", "--reason", "the user has left")
        await system.wait_for_results(["a"])
        await wait_for_step(system, "nobody", "cancel_requested")
        result = system.result("a")
        assert result["status"] == "cancelled"
        assert result["error"]["message"].endswith("the user has left")
        await system.wait_for_steps("a", "cancel_requested", "cancelled", "held")
        # A router that comes later knows of what was cancelled before.
        system.kill("router")
        await cancel(system, "b")
        system.start("router")
        await system.wait_for_results(["b"])
        await wait_for_step(system, "b", "cancel_requested")
        assert system.result("b")["status"] == "cancelled"
        await system.wait_for_steps("b", "cancel_requested", "cancelled", "held")
        await system.wait_for_steps("nobody", "cancel_requested")
        await system.wait_for_steps("odd", "cancel_requested")
        assert "nobody" not in system.results
        assert [letter.key for letter in system.dead_letters] == [b"\xff"]


async def test_a_request_that_runs_is_stopped(kafka: str, prefix: str, tmp_path: Path) -> None:
    async with System(kafka, prefix, tmp_path, fleet=SLOW_FLEET) as system:
        system.start_all()
        # A router that knows of no worker yet would hold it.
        await system.warm_up()
        warm_at = time.time()
        long = chat("long", deadline=time.time() + 600, hints={"output_tokens": 20_000})
        long["body"]["max_tokens"] = 20_000
        await system.publish(long)

        async def runs() -> bool:
            key = b"premium-eu/premium-eu-0"
            reports = await read_by_key(system.settings, system.catalogue.pool_status, key)
            last = orjson.loads(reports[-1].value or b"{}")
            return bool(last["at"] > warm_at and last["running"] == 1)

        await eventually(runs, "it runs")
        started = time.monotonic()
        await cancel(system, "long")
        await system.wait_for_results(["long"])
        assert time.monotonic() - started < 10
        assert system.result("long")["status"] == "cancelled"
        assert system.result("long")["placement"]["pool"] == "premium-eu"
        await system.publish(chat("next", deadline=time.time() + 600))
        await system.wait_for_results(["next"])
        assert system.result("next")["status"] == "completed"
        await wait_for_step(system, "long", "cancel_requested")
        await system.wait_for_steps("long", "cancel_requested", "cancelled", "placed")
        assert system.stop() == {"router": 0, "premium-eu": 0}
