"""A CPU pool from the request to the result, with its real models; one that fails fails alone."""

import logging
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from cpu_cases import FLEET, call, needs_extra
from memory_log import MemoryLog
from running_system import System
from stream_cases import Yard, step_until
from worker_cases import MemorySink

from policies.config.fleet import CPUBackendConfig as Declared
from streams.engine.log import Outgoing
from streams.engine.transactor import Transactor
from streams.router.stage import Router
from topics import Profile
from topics.records import headers as h
from workers.backends.base import CallError
from workers.backends.cpu.backend import CPUBackend
from workers.resilience.attempts import Attempts
from workers.resilience.circuit_breaker import Breakers
from workers.stage.chunks import Streams
from workers.stage.outcomes import OutcomeWriter
from workers.stage.worker import Worker

pytestmark = needs_extra
POLICY = """
default_class: embedding
classes:
  embedding: {latency_sensitive: false, batchable: false, deadline_s: 600, longest_wait_s: 300,
    output_tokens: 0}
  safety_classification: {latency_sensitive: false, batchable: false, deadline_s: 600,
    longest_wait_s: 300, output_tokens: 4}
"""


class Panic(BaseException):
    """As a library of compiled code raises where it panics: no Exception."""


def embedding(request_id: str, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": "minilm", "input": text} | body
    return {"id": request_id, "url": "/v1/embeddings", "body": body}


def moderation(request_id: str, text: str) -> dict[str, Any]:
    body = {"model": "offensive", "input": text}
    return {"id": request_id, "url": "/v1/moderations", "body": body}


class CPUYard(Yard):
    """An installation of one CPU pool, in memory."""

    def __init__(self) -> None:
        super().__init__(policy=POLICY, fleet=FLEET)
        served = self.options.by_pool["here"]
        self.backend = CPUBackend(Declared(type="cpu"), served, self.clock)
        self.breakers = Breakers("here", [o.variant for o in served], self.backend, self.clock)

    async def route(self, *requests: dict[str, Any]) -> None:
        """Publish requests and let a router place them all."""
        for each in requests:
            topic = self.catalogue.requests
            self.cluster.publish(Outgoing(topic, each["id"].encode(), orjson.dumps(each), [], 0))
        router = Router(
            self.situation(), self.evidence_writer(), self.clock, self.telemetry,
            request_bytes_max=1_000_000, duplicate_window_records=100,
        )  # fmt: skip
        transactor = await self.run(router)
        await step_until(
            transactor, lambda: len(self.evidence("placed")) == len(requests), "all are placed"
        )
        self.cluster.members.clear()

    async def work(self) -> Transactor:
        """Return the transactor of the pool's worker."""
        attempts_max, evidence_writer = self.policy.attempts_max, self.evidence_writer()
        attempts = Attempts(
            self.backend, self.breakers, self.clock, attempts_max=attempts_max, uniform=lambda: 0.0
        )
        worker = Worker(
            "here", self.options.by_pool["here"], attempts, evidence_writer,
            OutcomeWriter(evidence_writer, self.telemetry, attempts_max),
            self.clock, self.cancellations, Streams(MemorySink(self)), in_flight_max=100,
        in_flight_bytes_max=1 << 20,
        )  # fmt: skip
        return await self.run(worker, MemoryLog(self.cluster, "a"))


async def test_a_cpu_pool_serves_from_the_request_to_the_result() -> None:
    yard = CPUYard()
    await yard.route(
        embedding("e-0", "The engine sorts wagons."),
        moderation("m-0", "You stupid idiot."),
        embedding("e-1", "wagon", dimensions=8),
    )
    transactor = await yard.work()
    await step_until(transactor, lambda: len(yard.results()) == 3, "three results")
    results = yard.results()
    embedded, classified, refused = (results[name] for name in ("e-0", "m-0", "e-1"))
    assert embedded.response is not None
    assert len(embedded.response.body["data"][0]["embedding"]) == 384
    assert embedded.usage is not None
    assert (embedded.usage.input_tokens, embedded.usage.output_tokens) == (7, 0)
    assert classified.response is not None
    assert classified.response.body["results"][0]["flagged"] is True
    for result in (embedded, classified):
        assert result.placement is not None
        assert (result.placement.pool, result.placement.device) == ("here", "box")
    assert refused.error is not None
    assert (refused.status, refused.error.code) == ("failed", "request_refused")
    assert {e.step for e in yard.evidence()} == {"placed", "executed", "failed"}


@pytest.mark.parametrize("error", [RuntimeError("the text"), MemoryError(), Panic("the text")])
async def test_a_computation_that_fails_fails_its_request_alone(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    yard = CPUYard()
    embedder = yard.backend._embedder
    assert embedder is not None
    compute = embedder.embed

    def embed(texts: list[str], *, is_base64: bool) -> Any:
        if "poison" in texts:
            raise error
        return compute(texts, is_base64=is_base64)

    monkeypatch.setattr(embedder, "embed", embed)
    texts = ["one", "poison", "two", "poison", "three"]
    await yard.route(*(embedding(f"e-{n}", text) for n, text in enumerate(texts)))
    with caplog.at_level(logging.WARNING, "workers.backends.error_log"):
        transactor = await yard.work()
        await step_until(
            transactor, lambda: len(yard.evidence()) == 2 * len(texts), "each has its end"
        )
    served = {name for name, result in yard.results().items() if result.status == "completed"}
    assert served == {"e-0", "e-2", "e-4"}
    again = yard.cluster.records(yard.catalogue.reroutes)
    assert [record.key for record in again] == [b"e-1", b"e-3"]
    for record in again:
        (fallback,) = h.read(record.headers, h.PROFILE, Profile).fallbacks
        assert (fallback.pool, fallback.reason) == ("here", "server_error")
    # It is told once, and without the text that its message may hold.
    (message,) = (r.message for r in caplog.records if r.name == "workers.backends.error_log")
    assert message.startswith(f"pool here: a call failed by {type(error).__name__} in ")
    assert "the text" not in message


async def test_a_computation_that_fails_counts_for_the_circuit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = CPUYard().backend

    def embed(*_: object, **__: object) -> None:
        assert backend.load().idle_replicas == 0
        raise RuntimeError

    monkeypatch.setattr(backend._embedder, "embed", embed)
    with pytest.raises(CallError, match="RuntimeError") as caught:
        await backend.execute(call("embeddings", "x"))
    assert caught.value.is_pool_fault
    assert backend.load().variants["minilm-int8"].running == 0
    assert backend.load().idle_replicas == 1


@pytest.mark.kafka
async def test_a_cpu_pool_on_kafka(kafka: str, prefix: str, tmp_path: Path) -> None:
    fleet = yaml.safe_load(FLEET)
    made = [
        embedding("e-0", "The engine sorts wagons."),
        embedding("e-1", "wagon", dimensions=8),
        moderation("m-0", "You stupid idiot."),
        moderation("m-1", "Have a nice day."),
    ]
    async with System(kafka, prefix, tmp_path, fleet=fleet, policy_speed=10.0) as system:
        system.start_all()
        for each in made:
            # Patient, so that none has expired before the worker has loaded its models.
            await system.publish(each | {"service_tier": "flex"})
        await system.wait_for_results(each["id"] for each in made)
        assert system.result("e-1")["error"]["code"] == "request_refused"
        for name in ("e-0", "m-0", "m-1"):
            result = system.result(name)
            assert (result["status"], result["placement"]["pool"]) == ("completed", "here")
        body = system.result("e-0")["response"]["body"]
        assert len(body["data"][0]["embedding"]) == 384
        flagged = [
            system.result(name)["response"]["body"]["results"][0]["flagged"]
            for name in ("m-0", "m-1")
        ]
        assert flagged == [True, False]
