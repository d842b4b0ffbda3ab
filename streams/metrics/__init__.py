"""Metrics: committed effects, counted once, and the current state.

Belongs here: the catalogue of all metrics, the fold of committed evidence into them, gauges, and
their export (a page for Prometheus, OTLP). Does not: reactions to them.
"""

from streams.metrics.metric import Metric
from streams.metrics.otlp import MetricsService
from streams.metrics.process import Metrics
from streams.metrics.registry import METRICS

__all__ = ["METRICS", "Metric", "Metrics", "MetricsService"]
