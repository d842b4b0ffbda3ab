"""Counts of a gateway, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Meter:
    """The metrics of one gateway; no label is what a client chooses."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "shunter_gateway_requests",
            "Answers, by route and status.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "shunter_gateway_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._left = Counter(
            "shunter_gateway_clients_left",
            "Requests whose client left before the answer.",
            registry=self._registry,
        )
        self.open_requests = Gauge(
            "shunter_gateway_open_requests", "Requests open now.", registry=self._registry
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def left(self) -> None:
        """Count a client that left."""
        self._left.inc()

    def page(self) -> bytes:
        """Return the page of all metrics."""
        return generate_latest(self._registry)
