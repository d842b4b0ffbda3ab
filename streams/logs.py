"""Logging of a process: quiet in normal operation, and no flood from a dead broker."""

import logging
import sys
import time

REPEAT_EVERY_S = 10.0
_LIBRARIES = ("aiokafka", "faust", "mode", "aiohttp", "opentelemetry")


class Thinned(logging.Filter):
    """Lets the same message of the same logger through once in a while.

    With the retry time that transactions want, the Kafka client logs 22,000 lines in two short
    outages of a broker (measured; docs/decisions/0002).
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to let a record through."""
        key = (record.name, str(record.msg))
        now = time.monotonic()
        if now - self._last.get(key, -REPEAT_EVERY_S) < REPEAT_EVERY_S:
            return False
        self._last[key] = now
        return True


def set_up_logging(level: str) -> None:
    """Log to standard error: ours at ``level``, the libraries' warnings thinned."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [output]
    root.setLevel(level.upper())
    thinned = Thinned()
    output.addFilter(lambda record: not _is_library(record) or thinned.filter(record))
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_library(record: logging.LogRecord) -> bool:
    return record.name.split(".", 1)[0] in _LIBRARIES
