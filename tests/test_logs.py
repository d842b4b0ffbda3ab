"""The logs of a process: for people or programs, with the trace of the request they are about."""

import logging
from collections.abc import Iterator

import orjson
import pytest

from streams.logs import set_up_logging

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


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
