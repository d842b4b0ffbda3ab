"""Heartbeats of a worker: at a steady beat, a circuit at once, its end when it stops."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai_cases import FLEET
from running_system import eventually
from stream_cases import Yard, make_settings
from typer.testing import CliRunner
from worker_cases import POOL, ScriptedBackend, make_worker

from policies import FleetView
from policies.learning.feedback import Experience
from shunter.cli import app
from shunter.processes import worker
from streams.config.active_policy import DecisionContext
from streams.config.token_counting import TokenCounter
from streams.kafka import idempotent_producer
from streams.kafka.instance_name import Claim
from topics import Catalogue, PolicyLog, PoolStatus, Topic, decode
from topics.admin.acls import worker as worker_role
from topics.records.heartbeat import State
from workers.heartbeat import Heartbeat
from workers.resilience.circuit_breaker import FAILURES_MAX, Breakers

VARIANT = "yard-8b-fp8"
HEARTBEAT_S = 60.0


class Producer:
    """Keeps what it is given to send."""

    def __init__(self, sent: list[PoolStatus]) -> None:
        self._sent = sent
        self.buried: list[bytes] = []

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        last = self._sent[-1]
        assert self.buried == [f"{last.pool}/{last.instance}".encode()]

    async def send_and_wait(self, topic: str, value: bytes | None, *, key: bytes) -> None:
        if value is None:
            # The last word: what the topic keeps of an instance that is gone is nothing.
            assert self._sent[-1].state == "down"
            self.buried.append(key)
            return
        status = decode(PoolStatus, value)
        assert key == f"{status.pool}/{status.instance}".encode()
        assert not self.buried
        self._sent.append(status)


@contextlib.asynccontextmanager
async def beating(
    monkeypatch: pytest.MonkeyPatch, state: State = "up"
) -> AsyncIterator[tuple[Breakers, list[PoolStatus]]]:
    """Give the circuits of a worker that beats once a minute, and what it has told."""
    sent: list[PoolStatus] = []
    monkeypatch.setattr(idempotent_producer, "AIOKafkaProducer", lambda **_: Producer(sent))
    yard, backend = Yard(), ScriptedBackend()
    served = yard.options.by_pool[POOL]
    breakers = Breakers(POOL, [option.variant for option in served], backend, yard.clock)
    worker = make_worker(yard, backend)
    worker.take_context(DecisionContext(yard.situation(), yard.evidence_writer(), TokenCounter({})))
    service = Heartbeat(
        make_settings(heartbeat_s=HEARTBEAT_S),
        POOL,
        worker,
        backend,
        breakers,
        Experience(0.0),
        yard.clock,
        state=state,
    )
    await service.start()
    try:
        yield breakers, sent
    finally:
        await service.stop()


async def until_told(sent: list[PoolStatus], count: int) -> None:
    async def are_told() -> bool:
        return len(sent) >= count

    await eventually(are_told, f"{count} heartbeats", HEARTBEAT_S / 4)


async def test_routers_are_told_to_send_nothing_to_a_pool_that_is_evacuated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with beating(monkeypatch, "draining") as (breakers, sent):
        await until_told(sent, 1)
        breakers.changed.set()
        await until_told(sent, 2)
    assert [status.state for status in sent] == ["draining", "draining", "down"]


async def test_a_worker_tells_what_it_runs_by(monkeypatch: pytest.MonkeyPatch) -> None:
    async with beating(monkeypatch) as (_, sent):
        await until_told(sent, 1)
    (up, *_), options = sent, Yard().options
    assert (up.fleet_version, up.pool_version) == (options.version, options.pool_versions[POOL])
    assert {variant: each.precision for variant, each in up.variants.items()} == {VARIANT: "fp8"}
    view = FleetView(options)
    view.report(up)
    assert not view.misfits


async def test_a_circuit_that_opens_or_closes_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with beating(monkeypatch) as (breakers, sent):
        await until_told(sent, 1)
        assert [status.variants[VARIANT].circuit for status in sent] == ["closed"]
        for _ in range(FAILURES_MAX):
            breakers.failed(VARIANT)

        async def is_told() -> bool:
            return sent[-1].variants[VARIANT].circuit == "open"

        await eventually(is_told, "routers know that the circuit is open", HEARTBEAT_S / 4)
        await breakers._probe(VARIANT)

        async def is_told_again() -> bool:
            return sent[-1].variants[VARIANT].circuit == "closed"

        await eventually(is_told_again, "and that it is closed", HEARTBEAT_S / 4)
        assert {status.state for status in sent} == {"up"}
        assert len(sent) <= 4
    assert sent[-1].state == "down"


def test_a_worker_needs_no_more_of_the_fleet_than_its_own_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Topic] = []
    started: list[Any] = []
    monkeypatch.setattr(worker, "check_topics", lambda _, topics: checked.extend(topics))
    monkeypatch.setattr(worker, "read_said", lambda _: PolicyLog())
    monkeypatch.setattr(worker, "claim_name", lambda settings, *_: Claim(settings, None))
    monkeypatch.setattr(worker, "run_app", lambda *arguments, **_: started.append(arguments))
    backend = "    backend: {type: openai, base_url: 'https://x.test/v1'}\n"
    (tmp_path / "fleet.yaml").write_text(FLEET + backend)
    arguments = ["worker", "here", "--fleet", str(tmp_path / "fleet.yaml"), "--instance", "here-0"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exception is None, outcome.output
    ((name, settings, services),) = started
    assert (name, settings.instance) == ("worker-here", "here-0")
    assert any(isinstance(service, Heartbeat) for service in services)
    catalogue = Catalogue(settings)
    assert {topic.name for topic in checked} >= {
        catalogue.pool_lane("here", lane) for lane in ("direct", "batch")
    }
    assert {topic.name for topic in checked} <= set(worker_role(catalogue, "here").topics())
