"""Metrics of stages on the log in memory, and how to read them."""

import asyncio
from typing import Any

from memory_log import MemoryLog
from prometheus_client.parser import text_string_to_metric_families
from stream_cases import Yard, drain
from worker_cases import ScriptedBackend, make_worker, place

from streams.engine.transactor import Transactor
from streams.metrics import Metric, Metrics
from workers.gauges import profile_of


def make_metrics(yard: Yard, *, tenants_max: int = 20) -> Metrics:
    return Metrics(yard.options, yard.policy, tenants_max=tenants_max, profile_of=profile_of)


def counted(transactor: Transactor, metrics: Metrics) -> Transactor:
    """Let the metrics count what this one commits."""
    transactor._observers = [metrics.observer]
    return transactor


def read(metrics: Metrics, metric: Metric, part: str = "") -> dict[tuple[str, ...], float]:
    """Return what the page says of a metric: the value of each set of labels that is not 0.

    Args:
        metrics: of a process.
        metric: of the catalogue.
        part: of a histogram, ``count`` or ``sum``.
    """
    wanted = f"{metric.family}_{part}" if part else metric.series[0]
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in text_string_to_metric_families(metrics.page("")[1].decode())
        for sample in family.samples
        if sample.name == wanted and sample.value
    }


async def serve_one(yard: Yard, metrics: Any, *, end: Any = None, **fields: Any) -> ScriptedBackend:
    """Let a worker serve the request ``c``, and count it."""
    backend = ScriptedBackend()
    place(yard, "c", **fields)
    worker = make_worker(yard, backend)
    transactor = counted(await yard.run(worker, MemoryLog(yard.cluster, "a")), metrics)
    await transactor.step()
    await asyncio.sleep(0)
    (end or (lambda b: b.finish("c")))(backend)
    await asyncio.sleep(0)
    await drain(transactor)
    await transactor.step()
    return backend
