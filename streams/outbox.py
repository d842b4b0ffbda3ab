"""What waits to be sent to the collector: bounded, counted where it is lost, and quiet."""

import logging
import os
import threading
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

# Room for the release of some large batches at once: each member has two spans. A span takes 2 to
# 4 kB, so this is some 30 MB where the collector is down. OTEL_BSP_MAX_QUEUE_SIZE overrides it.
QUEUE_SPANS_MAX = 8192
BATCH_SPANS_MAX = 512
# A collector that is down must not keep a process from stopping.
CLOSE_S_MAX = 2.0


class _Counted(SpanExporter):
    """An exporter that counts, and tells once that the collector is down, and that it is back."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_down = False
        self.taken = 0
        self.sent = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        self.taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001 - whatever an exporter raises, the batch is lost
            result = SpanExportResult.FAILURE
        is_down = result is not SpanExportResult.SUCCESS
        if is_down:
            self.failed += len(spans)
        else:
            self.sent += len(spans)
        if is_down is not self._is_down:
            self._is_down = is_down
            if is_down:
                logger.warning("the collector takes no spans; they are dropped until it does")
            else:
                logger.info("the collector takes spans again; %d were lost", self.failed)
        return result

    def shutdown(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()


class Outbox:
    """Sends spans from a thread of its own; ``put`` never waits."""

    def __init__(self, exporter: SpanExporter, *, delay_s: float | None = None) -> None:
        self._exporter = _Counted(exporter)
        self._spans_max = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or QUEUE_SPANS_MAX)
        batch = int(os.environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") or BATCH_SPANS_MAX)
        self._processor = BatchSpanProcessor(
            self._exporter,
            # Never full, since what is refused here is counted here.
            max_queue_size=self._spans_max + batch,
            max_export_batch_size=min(batch, self._spans_max),
            schedule_delay_millis=None if delay_s is None else delay_s * 1000,
        )
        self._put = 0
        self._refused = 0

    @property
    def dropped(self) -> int:
        """Spans that there was no room for, or that the collector did not take."""
        return self._refused + self._exporter.failed

    def put(self, span: ReadableSpan) -> None:
        """Take a span to send, or drop it where too many wait."""
        if self._put - self._exporter.taken >= self._spans_max:
            self._refused += 1
            return
        self._put += 1
        self._processor.on_end(span)

    def flush(self) -> None:
        """Wait until all that waits was tried."""
        self._processor.force_flush()

    def close(self) -> None:
        """Send what waits and stop; what isn't sent soon counts as dropped."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S_MAX)
        if closing.is_alive():
            # No more tries: the thread that sends ends, as soon as its call does.
            self._exporter.shutdown()
        left = self._put - self._exporter.sent - self._exporter.failed
        if left > 0:
            self._refused += left
            logger.warning("%d spans were not sent before the end", left)
