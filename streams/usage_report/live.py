"""The live ledger: a Faust agent over the evidence, with a table in tumbling windows.

It is a view: it starts at its first start, forgets all when it stops, and may lose or double a
record when its partitions move. Exact figures are read from the evidence.
"""

import logging
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from mode import Service, Worker

from streams.logs import set_up_logging
from streams.usage_report.projection import Endings, Line, UsageEntry, UsageRow, as_json
from topics import Catalogue, Settings

logger = logging.getLogger(__name__)

# How many windows are kept.
WINDOWS_KEPT = 60
NOTE = "live: a view that may lose a record; `shunter ledger` reads the evidence"


class _Reader(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Reads committed records only, which Faust does only in its own transactions."""

    mundane_level = "debug"

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # noqa: SLF001  before it starts
        return consumer


class _Consumer(driver.Consumer):  # type: ignore[misc]
    mundane_level = "debug"

    def _new_consumer_thread(self) -> _Reader:
        return _Reader(self, loop=self.loop, beacon=self.beacon)


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer


class _Table(faust.Table):  # type: ignore[misc]
    """A table in memory only: without a changelog, it needs no topic and no right."""

    mundane_level = "debug"

    async def on_start(self) -> None:
        await self.add_runtime_dependency(self.data)

    def on_key_set(self, key: Any, value: Any) -> None:
        self._maybe_set_key_ttl(key, 0)

    def on_key_del(self, key: Any) -> None:
        self._maybe_del_key_ttl(key, 0)


class _ReadsOnly(faust.App.BootStrategy):  # type: ignore[misc]
    enable_kafka_producer = False


class _App(faust.App):  # type: ignore[misc]
    mundane_level = "debug"
    BootStrategy = _ReadsOnly
    table: Service

    def _new_transport(self) -> _Transport:
        return _Transport(self.conf.broker_consumer, self)

    def on_init_dependencies(self) -> Iterable[Service]:
        return [*super().on_init_dependencies(), self.table]


def ledger_app(settings: Settings, window_s: float) -> faust.App:
    """Return the app, which serves the ledger at ``/ledger``.

    Raises:
        ValueError: SASL is asked for without a user name and password.
        OSError: a TLS file can't be read.
    """
    catalogue = Catalogue(settings)
    app = _App(
        catalogue.ledger_group,
        broker=[f"kafka://{host}" for host in settings.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=settings.session_timeout_ms / 1000,
        consumer_auto_offset_reset="latest",
        store="memory://",
        # Nothing is created on Kafka.
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=True,
        web_bind=settings.web_host,
        web_host=settings.web_host,
        web_port=settings.web_port,
        # For its tables on disk, of which there are none.
        datadir=Path(tempfile.gettempdir()) / "shunter-ledger",
    )
    app.table = _Table(app, name="ledger", default=UsageRow, partitions=catalogue.partitions)
    endings = Endings()
    current: list[UsageEntry] = []
    # A request belongs to the window in which it ended, whenever Kafka or we learned of it.
    windows = app.table.tumbling(window_s, expires=window_s * WINDOWS_KEPT).relative_to(
        lambda _event: current[-1].at
    )
    evidence = app.topic(catalogue.evidence, value_serializer="raw", key_serializer="raw")

    @app.agent(evidence, name="ledger")  # type: ignore[untyped-decorator]
    async def fold(values: Any) -> None:
        async for value in values:
            ending = endings.take(value)
            if ending is not None:
                current[:] = [ending]
                # Not current(), which always uses the time of the event.
                row = windows[tuple(ending.line)].value()
                row.add(ending)
                windows[tuple(ending.line)] = row

    @app.page("/ledger")  # type: ignore[untyped-decorator]
    async def show(view: Any, _request: Any) -> Any:
        return view.json({"note": NOTE, "window_s": window_s, "rows": as_json(_rows(app.table))})

    return app


def _rows(table: Any) -> dict[tuple[float, Line], UsageRow]:
    return {(span[0], Line(*line)): row for (line, span), row in list(table.data.items())}


def run_ledger(settings: Settings, window_s: float) -> NoReturn:
    """Serve the live ledger until SIGTERM or SIGINT.

    Raises:
        ValueError: SASL is asked for without a user name and password.
        OSError: a TLS file can't be read.
    """
    set_up_logging(settings.log_level, settings.log_format)
    app = ledger_app(settings, window_s)
    where = f"http://{settings.web_host}:{settings.web_port}/ledger"
    logger.info("ledger of windows of %g s at %s", window_s, where)
    worker = Worker(app, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.execute_from_commandline()
    raise AssertionError("the worker ends the process")


def _credentials(settings: Settings) -> Any:
    """Return Faust's credentials, from the options of every other client."""
    options = settings.kafka_options()
    context: ssl.SSLContext | None = options.get("ssl_context")
    if "sasl_mechanism" in options:
        return SASLCredentials(
            mechanism=options["sasl_mechanism"],
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)
