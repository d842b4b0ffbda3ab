"""Logging of a process: quiet in normal operation, and no flood from a dead broker."""

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Literal

import orjson

from topics.credentials import masked
from topics.terminal_text import visible, visible_line

REPEAT_EVERY_S = 10.0
_EXPORTERS = ("opentelemetry", "urllib3")
_LIBRARIES = ("aiokafka", "faust", "mode", "aiohttp", *_EXPORTERS)


class RepeatFilter(logging.Filter):
    """Passes repeats of a logger's message only once per interval.

    With the retry time that transactions want, the Kafka client logs 22,000 lines in two short
    outages of a broker (measured; docs/decisions/0002).
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to pass a record."""
        key = (record.name, str(record.msg))
        now = time.monotonic()
        if now - self._last.get(key, -REPEAT_EVERY_S) < REPEAT_EVERY_S:
            return False
        self._last[key] = now
        return True


class _Pretty(logging.Formatter):
    """A line for people, with the trace of its request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        trace_id = getattr(record, "trace_id", None)
        line = visible(masked(super().format(record)))
        return line if trace_id is None else f"{line} trace_id={trace_id}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the base's name
        """Return the line without its traceback; foreign text in it can't begin another line."""
        record.message = visible_line(record.message)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """One JSON object per line, with the names of OpenTelemetry's log data model in lower case."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "severity_text": record.levelname,
            "logger": record.name,
            "body": masked(record.getMessage()),
        }
        trace_id = getattr(record, "trace_id", None)
        if trace_id is not None:
            told["trace_id"] = trace_id
        if record.exc_info:
            told["exception"] = masked(self.formatException(record.exc_info))
        return orjson.dumps(told, default=str).decode()


def set_up_logging(level: str, form: Literal["pretty", "json"] = "pretty") -> None:
    """Log to standard error: our own at ``level``, the libraries' warnings thinned."""
    output = logging.StreamHandler(sys.stderr)
    pretty = _Pretty("%(asctime)s %(levelname)s %(name)s: %(message)s")
    output.setFormatter(_Json() if form == "json" else pretty)
    root = logging.getLogger()
    root.handlers = [output]
    root.setLevel(level.upper())
    thinned = RepeatFilter()
    output.addFilter(lambda record: not _is_library(record) or thinned.filter(record))
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    # A collector that is down is logged once (streams/tracing/span_queue.py), not at each try.
    for name in _EXPORTERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _is_library(record: logging.LogRecord) -> bool:
    return record.name.split(".", 1)[0] in _LIBRARIES
