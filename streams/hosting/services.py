"""The process around the streams: one Faust app, which supervises them and handles signals.

Faust hosts, aiokafka carries (docs/decisions/0001): no record of the data plane passes through a
Faust agent or table.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import faust
from aiokafka.errors import ProducerFenced
from mode import Service, Worker

from streams.engine.concurrency import wait_for_all
from streams.engine.transactor import Transactor
from streams.hosting.readiness import no_broker, readiness_told
from streams.hosting.stop_limit import limit_stop
from streams.hosting.web import View, WebRequest
from streams.kafka.follower import TopicFollower
from streams.kafka.rebalance_patch import NameLostError
from streams.kafka.refused_rights import REFUSED_RIGHTS
from streams.kafka.writer import TransactionTimeoutError
from streams.logs import set_up_logging
from streams.service import QuietService
from streams.tracing.telemetry import Telemetry
from topics import Settings

Page = Callable[[], tuple[str, bytes]]
"""Returns the content type of a page, and its current content."""

MetricsPage = Callable[[str], tuple[str, bytes]]
"""The same for metrics, given the client's header ``Accept``."""

# From <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES_MAX = 64 * 1024 * 1024
# glibc's maximum. Larger blocks are mapped, and returned when they are freed.
HEAP_BLOCK_BYTES_MAX = 32 * 1024 * 1024

# A failing process has logged why. Others have to do the rest of its cleanup anyway if it is
# killed; and as long as it tries, nobody takes its place.
CRASHED_S_MAX = 1.0

logger = logging.getLogger(__name__)


class _NoKafkaOfItsOwn(faust.App.BootStrategy):  # type: ignore[misc]
    enable_kafka_producer = False


class _App(faust.App):  # type: ignore[misc]
    mundane_level = "debug"  # Faust tells of each start and stop
    BootStrategy = _NoKafkaOfItsOwn
    # An app without agents is rejected otherwise.
    producer_only = True

    def __init__(self, name: str, *, services: Sequence[Service], **options: Any) -> None:
        super().__init__(name, **options)
        self._data_plane = services

    def on_init_dependencies(self) -> Iterable[Service]:
        return [*super().on_init_dependencies(), *self._data_plane]

    def _crash(self, reason: BaseException) -> None:
        super()._crash(reason)
        _end_soon(1)

    async def start(self) -> None:
        try:
            await super().start()
        except asyncio.CancelledError:
            # A start is cancelled when the process is told to stop, once all that runs by then has
            # been stopped.
            _end_soon(0)
            raise
        except BaseException as error:
            # This does not stop what has started already.
            is_stopping = self._stopped.is_set() and not self._crashed.is_set()
            _end_soon(0 if is_stopping else 1)
            if is_stopping:
                # What a service used while it started has been closed before that was cancelled.
                raise asyncio.CancelledError from error
            raise


class _Worker(Worker):  # type: ignore[misc]
    """Faust's worker; its stop has a limit."""

    mundane_level = "debug"

    work_s_max = 0.0

    def _schedule_shutdown(self, signal_: signal.Signals) -> None:
        if not self._signal_stop_time:
            limit_stop(self.loop.time, self.work_s_max)
        super()._schedule_shutdown(signal_)


def _end_soon(status: int) -> None:
    """End the process, even if its parts wait for a broker that doesn't answer."""
    end = threading.Timer(CRASHED_S_MAX, os._exit, args=[status])
    end.daemon = True
    end.start()


@contextlib.contextmanager
def _reason_told() -> Iterator[None]:
    """Return one line on why a member can't continue; the traceback that follows is long."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, REFUSED_RIGHTS):
                logger.critical(
                    "Kafka refuses a right: %s; `shunter topics acls` lists the rights of each"
                    " role",
                    cause,
                )
            elif isinstance(cause, NameLostError | TransactionTimeoutError):
                logger.critical("%s", cause)
            elif isinstance(cause, ProducerFenced):
                logger.critical(
                    "another process has taken over a partition of this one, which was silent for"
                    " longer than its session, or has not its name (--instance) for itself"
                )
            cause = cause.__cause__
        raise


class StageService(QuietService):
    """Runs a transactor until the process stops."""

    def __init__(self, transactor: Transactor, name: str) -> None:
        super().__init__()
        self._transactor = transactor
        self._name = name

    @property
    def label(self) -> str:
        """The name in Faust's logs."""
        return self._name

    async def on_start(self) -> None:
        """Join the group."""
        with _reason_told():
            await self._transactor.start()

    @Service.task  # type: ignore[untyped-decorator]
    async def _run(self) -> None:
        with _reason_told():
            while not self.should_stop:
                await self._transactor.step()

    async def on_stop(self) -> None:
        """Leave between two transactions."""
        await self._transactor.stop()


class FollowerService(QuietService):
    """Keeps a process's knowledge of a topic up to date."""

    def __init__(self, follower: TopicFollower) -> None:
        super().__init__()
        self._follower = follower
        self._has_reader = False

    async def on_start(self) -> None:
        """Read the existing records before anything is decided."""
        await self._follower.start()
        self._has_reader = True

    @Service.task  # type: ignore[untyped-decorator]
    async def _run(self) -> None:
        while not self.should_stop:
            await self._follower.step(timeout_s=0.5)

    async def on_shutdown(self) -> None:
        """Close the reader, once the task no longer uses it."""
        if self._has_reader:
            await self._follower.stop()


class ServiceGroup(QuietService):
    """Independent services, started concurrently, since each mostly waits for the broker."""

    def __init__(self, *services: Service) -> None:
        super().__init__()
        self._services = services

    def on_init_dependencies(self) -> Iterable[Service]:
        """Return the services that stop, and crash, with this one."""
        return self._services

    async def on_start(self) -> None:
        """Start all, and wait for the last."""
        await wait_for_all([service.maybe_start() for service in self._services])


class TelemetryService(QuietService):
    """Sends the remaining spans when everything else has stopped."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self._telemetry = telemetry

    async def on_stop(self) -> None:
        """Close the exporter, which may take a while."""
        await asyncio.to_thread(self._telemetry.close)


def run_app(
    name: str,
    settings: Settings,
    services: Sequence[Service],
    *,
    obstacle: Callable[[], str | None] = lambda: None,
    work_s_max: float = 0.0,
    pages: Mapping[str, Page] | None = None,
    views: Mapping[str, View] | None = None,
    metrics: MetricsPage | None = None,
) -> NoReturn:
    """Run the services until SIGTERM or SIGINT (exit 0), or until one fails (exit 1, rule 5).

    Args:
        name: of the process, as in its logs.
        settings: for listening and logging.
        services: started in this order, stopped in the reverse.
        obstacle: returns why no work can be done, though all services run; None if it can.
        work_s_max: how long it may go on with what it has when it is told to stop, in seconds.
        pages: those beside health and readiness, by path.
        views: the same, for pages that read their request.
        metrics: the page at ``/metrics``.

    Raises:
        SystemExit: 1, the port is taken.
    """
    set_up_logging(settings.log_level, settings.log_format)
    shown = settings.model_dump(mode="json", exclude_defaults=True)
    logger.info("%s %r starts with %s", name, settings.instance, shown or "default settings")
    _check_port(settings)
    app = _App(
        f"{settings.topic_prefix}-{name}",
        services=services,
        broker=[f"kafka://{host}" for host in settings.bootstrap_servers.split(",")],
        web_enabled=settings.web_port > 0,
        web_bind=settings.web_host,
        web_host=settings.web_host,
        web_port=settings.web_port or 6066,
        # Faust wants a directory for tables, of which there are none.
        datadir=Path(tempfile.gettempdir()) / "shunter-faust",
    )
    if settings.web_port:
        _add_health(app, services, obstacle)
        for path, page in (pages or {}).items():
            _add_page(app, path, page)
        for path, view in (views or {}).items():
            _add_view(app, path, view)
        if metrics is not None:
            _add_metrics(app, metrics)
    calm_garbage_collector()
    keep_freed_memory()
    worker = _Worker(app, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.work_s_max = work_s_max
    worker.execute_from_commandline()
    raise AssertionError("the worker ends the process")


def _check_port(settings: Settings) -> None:
    """End the process with a line where its port can't be had: Faust's traceback has hundreds."""
    if not settings.web_port:
        return
    try:
        family, *_, address = socket.getaddrinfo(
            settings.web_host, settings.web_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family) as tried:
            # As servers do: what a process of before has left in TIME_WAIT is in nobody's way.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        logger.critical(
            "nothing can listen on %s, port %d (SHUNTER_WEB_HOST, SHUNTER_WEB_PORT): %s",
            *(settings.web_host, settings.web_port, error),
        )
        raise SystemExit(1) from error


def _add_page(app: faust.App, path: str, page: Page) -> None:
    @app.page(path)  # type: ignore[untyped-decorator]
    async def show(view: Any, _request: Any) -> Any:
        content_type, content = page()
        return view.bytes(content, content_type=content_type)


def _add_view(app: faust.App, path: str, answer: View) -> None:
    @app.page(path)  # type: ignore[untyped-decorator]
    async def show(view: Any, request: Any) -> Any:
        found = await answer(WebRequest(request.query, request.headers))
        return view.bytes(
            found.content,
            content_type=found.content_type,
            status=found.status,
            headers=dict(found.headers),
        )


def _add_metrics(app: faust.App, page: MetricsPage) -> None:
    @app.page("/metrics")  # type: ignore[untyped-decorator]
    async def show(view: Any, request: Any) -> Any:
        content_type, content = page(request.headers.get("Accept", ""))
        return view.bytes(content, content_type=content_type)


def calm_garbage_collector() -> None:
    """Collect garbage less often, and never objects loaded at start.

    A request makes a few hundred objects and no cycle of its own. Deciding on one took 213 us with
    the default thresholds and 172 us with these (2 cores, 6 options, medians of three).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MiB of freed heap; elsewhere, do nothing.

    By default it returns memory, and takes it again page by page, for each large request that is
    read and sent: 200 page faults, 0.4 ms of 3.6, for one of 400 KB (`python -m benchmarks --only
    large` reports the faults).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
        mallopt(_M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES_MAX)


def _add_health(
    app: faust.App, services: Sequence[Service], obstacle: Callable[[], str | None]
) -> None:
    """Serve ``/healthz`` while every service runs, ``/readyz`` while it also can do work.

    A process without a broker can do none, but lives: a new one would be no better off.
    """

    def is_up() -> bool:
        return all(service.started and not service.crashed for service in services)

    def reason() -> str | None:
        return (obstacle() or no_broker()) if is_up() else "a part of the process does not run"

    @app.page("/healthz")  # type: ignore[untyped-decorator]
    async def health(view: Any, _request: Any) -> Any:
        up = is_up()
        return view.json({"status": "up" if up else "down"}, status=200 if up else 503)

    @app.page("/readyz")  # type: ignore[untyped-decorator]
    async def readiness(view: Any, _request: Any) -> Any:
        content = readiness_told(reason())
        return view.json(content, status=503 if "reason" in content else 200)
