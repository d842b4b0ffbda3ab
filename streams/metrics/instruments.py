"""The instruments of the catalogue, kept by Prometheus' client library."""

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from streams.metrics.metric import Metric

# Each would be a series of its own beside each counter and histogram.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Names:
    """Values of a label, limited in number; the rest are ``other``.

    Values known beforehand come first, then the first that occur.
    """

    OTHER = "other"

    def __init__(self, known: tuple[str, ...], names_max: int) -> None:
        self._names = dict.fromkeys(known[:names_max])
        self._names_max = names_max

    def of(self, name: str | None) -> str:
        """Return the name, or ``other`` beyond the limit; none if there is none."""
        if not name:
            return "none"
        if name not in self._names:
            if len(self._names) >= self._names_max:
                return self.OTHER
            self._names[name] = None
        return name


class Instruments:
    """Counters and histograms of the catalogue, each registered when it is first used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._counters: dict[Metric, Counter] = {}
        self._histograms: dict[Metric, Histogram] = {}
        # Finding a child by the library's own way takes twice as long as counting with it.
        self._children: dict[tuple[object, ...], Histogram] = {}

    def add(self, metric: Metric, labels: tuple[str, ...], amount: float) -> None:
        """Increase a counter; adding 0 makes it visible."""
        counter = self._counters.get(metric)
        if counter is None:
            counter = Counter(metric.family, metric.text, metric.labels, registry=self._registry)
            self._counters[metric] = counter
        counter.labels(*labels).inc(amount)

    def observe(
        self, metric: Metric, value: float, *labels: str, trace_id: str | None = None
    ) -> None:
        """Add a value to its histogram; its trace becomes the exemplar of its bucket."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._histogram(metric).labels(*labels)
        child.observe(value, None if trace_id is None else {"trace_id": trace_id})

    def _histogram(self, metric: Metric) -> Histogram:
        found = self._histograms.get(metric)
        if found is None:
            found = self._histograms[metric] = Histogram(
                metric.family,
                metric.text,
                metric.labels,
                buckets=metric.bounds,
                registry=self._registry,
            )
        return found
