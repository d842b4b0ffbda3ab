"""The whole system on real Kafka, as users meet it."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import confluent_kafka
import orjson
import pytest
import pytest_asyncio
from running_system import SPEED, System, chat, eventually

from topics import Evidence, Result, decode
from topics.embedded_broker.broker import EmbeddedBroker

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A router and a worker of each pool, on uvloop; the other modules' are on asyncio's loop."""
    directory = tmp_path_factory.mktemp("system")
    uvloop = {"FAUST_LOOP": "uvloop"}
    async with System(kafka, f"whole-{os.getpid()}", directory, extra_env=uvloop) as system:
        system.start_all()
        # However long the processes take to start.
        await system.warm_up()
        yield system


async def test_another_client_publishes_and_reads(system: System) -> None:
    """A native request and a line of an OpenAI Batch file, through librdkafka."""
    line = {
        "custom_id": "line-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": chat("unused")["body"],
    }

    def through_librdkafka() -> dict[str, dict[str, Any]]:
        kafka = system.bootstrap_servers
        producer = confluent_kafka.Producer({"bootstrap.servers": kafka})
        topic = system.catalogue.requests
        producer.produce(topic, json.dumps(chat("native-1")), key="native-1")
        producer.produce(topic, json.dumps(line))
        producer.flush(10)
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": kafka,
                "group.id": f"{system.prefix}-reader",
                "auto.offset.reset": "earliest",
            }
        )
        consumer.subscribe([system.catalogue.results])
        found: dict[str, dict[str, Any]] = {}
        wanted = {"native-1", "line-1"}
        end_at = time.monotonic() + 40
        while not wanted <= found.keys() and time.monotonic() < end_at:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                found[message.key().decode()] = json.loads(message.value())
        consumer.close()
        return found

    found = await asyncio.to_thread(through_librdkafka)
    assert found.keys() >= {"native-1", "line-1"}, system.logs()
    direct, batched = found["native-1"], found["line-1"]
    assert direct["status"] == batched["status"] == "completed"
    assert direct["placement"]["path"] == "direct"
    assert direct["response"]["body"]["object"] == "chat.completion"
    usage = direct["response"]["body"]["usage"]
    assert usage["completion_tokens"] == direct["usage"]["output_tokens"] > 0
    assert usage["prompt_tokens"] == direct["usage"]["input_tokens"]
    await system.wait_for_results(["native-1", "line-1"])
    assert system.steps("native-1") == ["placed", "executed"]
    # The records keep their contract: what was written can be read back as its model.
    for record in (direct, batched):
        assert decode(Result, orjson.dumps(record)).id in found
    for evidence in system.evidence:
        assert decode(Evidence, orjson.dumps(evidence)).writer


async def test_batches_form_and_stay_together(system: System) -> None:
    ids = [f"doc-{i}" for i in range(48)]
    for request_id in ids:
        await system.publish(chat(request_id, task="summarization"))
    await system.wait_for_results(ids)
    released = [e for e in system.evidence if e["step"] == "released" and e["request_id"] in ids]
    batches: dict[str, list[dict[str, Any]]] = {}
    for evidence in released:
        batches.setdefault(evidence["batch"]["id"], []).append(evidence)
    assert sum(map(len, batches.values())) / len(batches) > 4
    for members in batches.values():
        assert sorted(e["batch"]["index"] for e in members) == list(range(len(members)))
        assert {e["batch"]["size"] for e in members} == {len(members)}
        assert len({e["placement"]["model_variant"] for e in members}) == 1
    assert all(len(found) == 1 for found in system.results.values())


async def test_on_uvloop_each_process_stops_in_good_order(system: System) -> None:
    """The last test of the module's system."""
    loaded = (Path(f"/proc/{p.pid}/maps").read_text() for p in system.processes.values())
    assert all("uvloop" in maps for maps in loaded)
    assert set((await asyncio.to_thread(system.stop)).values()) == {0}, system.logs()


async def test_held_requests_survive_a_restart_of_everything(prefix: str, tmp_path: Path) -> None:
    """Router, workers and the broker itself go away while requests are held."""
    ids = [f"held-{i}" for i in range(20)]
    window = {"task": "synthetic_data", "hints": {"batchable": True}}
    with EmbeddedBroker(data_dir=tmp_path / "kafka") as broker:
        async with System(broker.bootstrap_servers, prefix, tmp_path) as system:
            # Without a worker that could serve them, all of them wait.
            system.start("router")
            for request_id in ids:
                await system.publish(chat(request_id, **window))

            async def all_held() -> bool:
                await system.read()
                return sum(e["step"] == "held" for e in system.evidence) == len(ids)

            await eventually(all_held, "all are held")
            assert system.stop() == {"router": 0}
        await asyncio.to_thread(broker.restart)
        async with System(broker.bootstrap_servers, prefix, tmp_path) as system:
            system.start_all()
            await system.wait_for_results(ids)
            for request_id in ids:
                assert system.result(request_id)["status"] == "completed"
                assert system.steps(request_id).count("held") == 1
                assert system.steps(request_id)[-2:] == ["released", "executed"]
            assert system.stop() == {"router": 0, "premium-eu": 0, "lpddr-us": 0}


async def test_without_a_live_pool_requests_wait_and_are_rejected_in_the_end(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        system.start("router")
        started = time.monotonic()
        # Its deadline is far, so that a router that starts slowly does not find it expired.
        await system.publish(chat("nobody", deadline=time.time() + 60))
        await system.wait_for_results(["nobody"])
        # A chat waits 30 s for a pool, at this speed.
        assert time.monotonic() - started >= 30 / SPEED
        result = system.result("nobody")
        assert result["status"] == "rejected"
        assert result["error"]["code"] == "pool_unavailable"
        assert system.steps("nobody") == ["held", "rejected"]
