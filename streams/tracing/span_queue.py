"""The queue of spans for the collector: bounded, with losses counted and few log lines."""

import logging
import os
import threading
from collections import deque
from typing import Protocol

from opentelemetry.sdk.resources import Resource

from streams.tracing import otlp_encoding as otlp

logger = logging.getLogger(__name__)

# Room for the release of some large batches at once: each member has two spans. A span takes up to
# 4 kB, so this is some 30 MB where the collector is down. OTEL_BSP_MAX_QUEUE_SIZE overrides it.
QUEUE_SPANS_MAX = 8192
BATCH_SPANS_MAX = 512
DELAY_MS = 5000
# A collector that is down must not keep a process from stopping.
CLOSE_S_MAX = 2.0


class Exporter(Protocol):
    """Sends encoded spans to a collector. Called by one thread at a time."""

    def send(self, request: bytes, spans: int) -> bool:
        """Send a number of spans, and return whether the collector took them. May raise."""
        ...

    def close(self) -> None:
        """Close the connection; a call of ``send`` in flight on another thread ends soon."""
        ...


class SpanQueue:
    """Sends spans from a thread of its own; ``put`` never waits.

    Raises:
        ValueError: one of the ``OTEL_BSP_*`` variables is unfit.
    """

    def __init__(
        self, exporter: Exporter, resource: Resource, *, delay_s: float | None = None
    ) -> None:
        self._exporter = exporter
        self._resource = resource.attributes
        self._spans_max = _told("MAX_QUEUE_SIZE", QUEUE_SPANS_MAX)
        self._batch_max = min(_told("MAX_EXPORT_BATCH_SIZE", BATCH_SPANS_MAX), self._spans_max)
        self._delay_s = _told("SCHEDULE_DELAY", DELAY_MS) / 1000 if delay_s is None else delay_s
        self._waiting: deque[bytes] = deque()
        self._put = 0
        self._sent = 0
        self._failed = 0
        self._refused = 0
        self._is_down = False
        self._is_closing = False
        self._is_closed = False
        self._sending = threading.Lock()
        self._is_due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Spans that found no room, or that the collector did not take."""
        return self._refused + self._failed

    @property
    def is_full(self) -> bool:
        """True if there is no room for another span."""
        return len(self._waiting) >= self._spans_max or self._is_closing

    def refuse(self) -> None:
        """Count a span for which there is no room."""
        self._refused += 1

    def put(self, span: bytes) -> None:
        """Queue an encoded span, for which there is room."""
        self._put += 1
        self._waiting.append(span)
        if len(self._waiting) >= self._batch_max and not self._is_due.is_set():
            self._is_due.set()

    def flush(self) -> None:
        """Wait until every queued span was tried."""
        self._send(down_to=0)

    def close(self) -> None:
        """Send the queued spans and stop; those not sent soon count as dropped."""
        self._is_closing = True
        self._is_due.set()
        self._thread.join(CLOSE_S_MAX)
        # No more retries: the sending thread ends as soon as its call does.
        self._is_closed = True
        self._exporter.close()
        left = self._put - self._sent - self._failed
        if left > 0:
            self._refused += left
            logger.warning("%d spans were not sent before the end", left)

    def _run(self) -> None:
        while not self._is_closing:
            is_full = self._is_due.wait(self._delay_s)
            self._is_due.clear()
            # Only whole batches of queued spans, unless they have waited long enough.
            self._send(down_to=self._batch_max - 1 if is_full and not self._is_closing else 0)
        self._send(down_to=0)

    def _send(self, *, down_to: int) -> None:
        with self._sending:
            while len(self._waiting) > down_to and not self._is_closed:
                count = min(len(self._waiting), self._batch_max)
                self._try([self._waiting.popleft() for _ in range(count)])

    def _try(self, spans: list[bytes]) -> None:
        """Send a batch; log once that the collector is down, and that it is back."""
        try:
            is_taken = self._exporter.send(otlp.request(self._resource, spans), len(spans))
        except Exception:  # noqa: BLE001 - whatever an exporter raises, the batch is lost
            is_taken = False
        if is_taken:
            self._sent += len(spans)
        else:
            self._failed += len(spans)
        if is_taken is self._is_down:
            self._is_down = not is_taken
            if self._is_down:
                logger.warning("the collector takes no spans; they are dropped until it does")
            else:
                logger.info("the collector takes spans again; %d were lost", self._failed)


def _told(name: str, default: int) -> int:
    """Return a limit that the environment may set."""
    variable = f"OTEL_BSP_{name}"
    told = os.environ.get(variable, "").strip()
    if not told:
        return default
    if not told.isdecimal() or int(told) == 0:
        raise ValueError(f"{variable}={told} is no whole number above 0")
    return int(told)
