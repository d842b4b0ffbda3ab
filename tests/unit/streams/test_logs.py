"""The logs of a process: for people or programs, with the trace of the request they are about."""

import asyncio
import logging
from typing import Any

import orjson
import pytest
from memory_log import MemoryLog
from mode import Worker
from stream_cases import Yard, drain, make_router, make_settings
from trace_cases import TracedYard
from worker_cases import ScriptedBackend, make_worker

from shunter.processes import ledger
from streams.logs import set_up_logging

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    logger = logging.getLogger("streams.x")
    logger.warning("%s refused\na record", "topic", extra={"trace_id": TRACE_ID})
    try:
        int("no number")
    except ValueError:
        logger.exception("failed")
    logger.debug("too fine")
    first, second = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert first["body"] == "topic refused\na record"
    assert (first["severity_text"], first["logger"]) == ("WARNING", "streams.x")
    assert first["trace_id"] == TRACE_ID
    assert first["timestamp"].endswith("+00:00")
    assert "ValueError: invalid" in second["exception"]
    assert "trace_id" not in second


def test_pretty_lines_name_the_trace_where_there_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging("info")
    logging.getLogger("streams.x").info("taken", extra={"trace_id": TRACE_ID})
    logging.getLogger("streams.x").info("started", extra={"trace_id": None})
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(f"INFO streams.x: taken trace_id={TRACE_ID}")
    assert second.endswith("INFO streams.x: started")


def test_libraries_are_thinned_and_exporters_silent(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    for _ in range(5):
        logging.getLogger("aiokafka.x").error("broker gone")
        logging.getLogger("opentelemetry.exporter.otlp").error("collector gone")
        logging.getLogger("urllib3.connectionpool").warning("collector gone")
    assert capsys.readouterr().err.count("gone") == 1


def test_the_live_ledger_logs_in_the_form_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "execute_from_commandline", lambda _worker: None)
    with pytest.raises(AssertionError):
        ledger.run_ledger(make_settings(log_format="json", web_port=6067), 60.0)
    lines = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert "http://127.0.0.1:6067/ledger" in " ".join(line["body"] for line in lines)


@pytest.mark.parametrize("what", ["evidence", "result", "dead letter"])
async def test_a_refused_record_is_told_with_the_trace_that_the_router_began(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    yard = TracedYard()
    refused = {
        "evidence": lambda out: getattr(out.payload, "step", "") == "placed",
        "result": lambda out: getattr(out.payload, "status", "") == "completed",
        "dead letter": lambda out: out.topic == yard.catalogue.pool_lane("premium-eu", "direct"),
    }
    yard.cluster.refuse = refused[what]
    yard.publish(id="c1")
    await drain(await yard.run(yard.router()))
    if what == "result":
        await serve_all(yard, ["c1"])
    (told,) = [r for r in caplog.records if "refused a record" in r.getMessage()]
    (result,) = yard.results().values()
    assert result.trace_id == told.trace_id  # type: ignore[attr-defined]
    assert len(result.trace_id or "") == 32


async def serve_all(yard: Yard, names: list[str]) -> None:
    backend = ScriptedBackend()
    serving = await yard.run(make_worker(yard, backend), MemoryLog(yard.cluster, "w"))
    await drain(serving)
    await asyncio.sleep(0)
    for name in names:
        backend.finish(name)
    await asyncio.sleep(0)
    await drain(serving)
    await serving.step()


async def test_nothing_is_logged_for_a_request_that_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lines: list[Any] = []
    for count in (1, 4):
        yard = TracedYard()
        names = [f"c{n}" for n in range(count)]
        for name in names:
            yard.publish(id=name, constraints={"pools": ["premium-eu"]})
        await drain(await yard.run(make_router(yard)))
        await serve_all(yard, names)
        assert {r.status for r in yard.results().values()} == {"completed"}
        lines.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    assert lines[0] == lines[1]
