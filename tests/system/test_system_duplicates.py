"""Duplicates on real Kafka, through real processes."""

from pathlib import Path

import orjson
import pytest
from running_system import System, chat, publish_unreadable

pytestmark = pytest.mark.kafka


async def test_a_request_published_again_is_served_once_even_by_another_router(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """The new router reads back what its killed predecessor had, a record it can't decode too."""
    # Slower than others: no request may run out of time while the pools come alive.
    async with System(kafka, prefix, tmp_path, policy_speed=2.0) as system:
        system.start_all()
        # Before its pool is up a request is held, and released.
        await system.warm_up()
        for request_id in ("a", "b", "a"):
            await system.publish(chat(request_id), partition=0)
        odd = orjson.dumps(chat("odd"))
        await publish_unreadable(system, system.catalogue.requests, b"odd", odd)
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
            await system.wait_for_steps(request_id, *steps)
            assert system.result(request_id)["status"] == "completed"
        (evidence,) = [
            e for e in system.evidence if (e["request_id"], e["step"]) == ("a", "duplicate")
        ]
        assert evidence["message"].endswith(f"{system.catalogue.requests}/0@0")
        assert len(system.dead_letters) == 1
