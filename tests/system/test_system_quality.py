"""The quality watch of a running system: a variant that has drifted loses its classes."""

import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from running_system import System, eventually

from shunter.logs.quality import read_known
from topics import Comparison, encode

pytestmark = pytest.mark.kafka


def request(request_id: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "which track?"}]
    body = {"model": "llama-3.1-8b", "messages": messages}
    # The other pool's variant is int8, which chat gets by choice alone.
    any_precision = {"precisions": ["any"]}
    return {"id": request_id, "body": body, "service_tier": "flex", "constraints": any_precision}


async def test_a_router_keeps_work_from_a_variant_that_has_drifted(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        system.start_all()
        # What serves chat by itself is the pool that drifts: the router knows that it is there.
        await system.warm_up()
        for n in range(30):
            compared = Comparison(
                *(f"s{n}", f"r{n}", time.time(), "chat", "premium-eu", "llama-3.1-8b-fp8"),
                *("llama-3.1-8b-int8", "labels", 0.2, 1.0, 0.01),
            )
            topic = system.catalogue.comparisons
            await system.producer.send_and_wait(topic, encode(compared), key=b"k")

        async def is_found() -> bool:
            return bool((await read_known(system.settings)).drifted())

        await eventually(is_found, "the watch says that it has drifted")
        await system.publish(request("r1"))
        await system.wait_for_results(["r1"])
        await system.wait_for_steps("s5", "drifted")
        assert orjson.loads(encode(system.result("r1")))["placement"]["pool"] == "lpddr-us"
        (held,) = [e for e in system.evidence if e["request_id"] == "r1" and e["step"] == "held"]
        refused = {c["pool"]: c.get("refused") for c in held["candidates"]}
        assert refused["premium-eu"] == "drifted"
