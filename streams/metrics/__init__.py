"""Metrics: what became visible, counted once, and what stands at this moment.

Belongs here: the catalogue of all metrics, the fold of committed evidence into them, gauges, and
how they are told (a page for Prometheus, OTLP). Does not: what is done about them.
"""

from streams.metrics.otlp import MetricsService
from streams.metrics.process import Metrics
from streams.metrics.registry import METRICS, Metric

__all__ = ["METRICS", "Metric", "Metrics", "MetricsService"]
