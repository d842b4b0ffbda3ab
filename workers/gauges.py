"""State of a worker that the metrics of its process need."""

from collections.abc import Callable

from streams.engine.stage import Effect
from streams.metrics import registry as m
from streams.metrics.gauges import Readings
from topics import Profile
from workers.backends.base import Backend
from workers.resilience.circuit_breaker import Breakers
from workers.stage.outcomes import Task
from workers.stage.worker import Worker


def worker_gauges(
    pool: str, worker: Worker, backend: Backend, breakers: Breakers
) -> Callable[[], Readings]:
    """Return gauges of the requests that a worker has taken, and of its backend and circuits."""

    def read() -> Readings:
        yield m.IN_FLIGHT, (pool, "running"), worker.running
        yield m.IN_FLIGHT, (pool, "queued"), worker.queued
        yield m.IN_FLIGHT_LIMIT, (pool,), worker.in_flight_max
        yield m.SLOTS, (pool,), worker.slots
        if (moved := backend.load().migrations) is not None:
            yield m.MIGRATIONS, (pool,), moved
        for variant, state in breakers.states().items():
            yield m.CIRCUIT_CLOSED, (pool, variant), float(state == "closed")

    return read


def profile_of(effect: Effect) -> Profile | None:
    """Return the profile of an effect's request, None if the worker couldn't read it."""
    return effect.subject.routed.profile if isinstance(effect.subject, Task) else None
