"""Defects where the end of a request is written: it ends all the same, or the worker does."""

import asyncio
from typing import Any

import pytest
from stream_cases import Yard, step_until
from worker_cases import ScriptedBackend, place, progress, serve

from streams.engine.log import LogError
from streams.evidence.records import EvidenceWriter
from topics import Progress
from workers.stage.outcomes import OutcomeWriter


async def test_a_cancellation_that_nobody_asked_for_ends_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def compared(*_: Any) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(OutcomeWriter, "compared", compared)
    yard, backend = Yard(), ScriptedBackend()
    place(yard, "c0")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running == ["c0"], "the call")
    backend.finish("c0")
    await step_until(transactor, yard.results, "the result")
    error = yard.results()["c0"].error
    assert error is not None
    assert error.code == "unhandled"
    assert progress(yard) == Progress(1)


async def test_a_request_that_can_not_even_be_set_aside_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def defect(*_: Any, **__: Any) -> None:
        raise RuntimeError("no end can be written")

    yard, backend = Yard(), ScriptedBackend()
    place(yard, "c0")
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running == ["c0"], "the call")
    monkeypatch.setattr(OutcomeWriter, "completed", defect)
    monkeypatch.setattr(EvidenceWriter, "set_aside", defect)
    backend.finish("c0")
    with pytest.raises(LogError, match="could not be ended"):
        await step_until(transactor, yard.results, "the end of the worker")
    assert not yard.results()
