"""The gateway's process: the application, its routes, and the server around it."""

import asyncio
import contextlib
import logging
import signal
import ssl
from asyncio import sslproto
from collections.abc import AsyncIterator

from aiohttp import web

from gateway.api.inference import infer
from gateway.api.models import model, models, request_result
from gateway.api.translation import ENDPOINTS
from gateway.batches.assembly import add_batches
from gateway.exchange.claims import ClaimFollower
from gateway.exchange.exchange import Exchange
from gateway.exchange.fleet_state import FleetState
from gateway.exchange.request_ids import new_id
from gateway.http.connection import OPTIONS, Connection
from gateway.http.health import healthz, readyz
from gateway.http.keys import ApiKeys, KeyProofs
from gateway.http.middleware import answer_in_form, as_api_error
from gateway.http.pages import docs, index, metrics, openapi
from gateway.http.state import BY_TURN, GATEWAY, Gateway
from streams.engine.clock import SystemClock
from streams.hosting.stop_limit import limit_stop
from streams.kafka.follower import TopicFollower
from streams.tracing.setup import from_environment
from topics import Settings
from topics.signing.key_files import KeyFileError, check_key_file

BACKLOG = 1024
STOP_S_MAX = 10.0
KEYS_EVERY_S = 1.0
FOLLOW_S = 0.5
# For cancellations of clients that have just left.
FINISH_S_MAX = 1.0
# What a connection over TLS is read into; a record of TLS has at most 16 KiB. With asyncio's own
# 256 KiB each, 900 open connections took 311 MB, with these 114.
TLS_BUFFER_BYTES = 32 * 1024

logger = logging.getLogger(__name__)


def routes(_settings: Settings) -> list[web.RouteDef]:
    """Return the routes of a gateway with these settings."""
    return [
        web.get("/", index),
        web.get("/docs", docs),
        web.get("/openapi.json", openapi),
        web.get("/metrics", metrics),
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        *(web.post(path, infer) for path in ENDPOINTS),
        web.get("/v1/models", models),
        web.get("/v1/models/{id:.+}", model),
        web.get("/v1/requests/{id}", request_result),
    ]


def create_app(gateway: Gateway) -> web.Application:
    """Return the application over the parts of a process, which the caller starts."""
    # Bodies are read with a limit of their own (gateway/http/bodies.py).
    app = web.Application(middlewares=[answer_in_form], client_max_size=0)
    app[GATEWAY] = gateway
    app[BY_TURN] = frozenset(ENDPOINTS)
    app.add_routes(routes(gateway.settings))
    add_batches(app, gateway)
    app.on_response_prepare.append(_sign)
    return app


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    if isinstance(response, web.HTTPException):
        # aiohttp's own answer where no middleware was asked, as for an odd `Expect`.
        told = as_api_error(request, response).response()
        response.body, response.content_type = told.body, told.content_type
        response.headers["Content-Length"] = str(told.content_length)
        response.headers["x-request-id"] = new_id("", request.app[GATEWAY].clock.now())
    response.headers["Server"] = "shunter"


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[Gateway, int]]:
    """Serve, and provide the parts and the port.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        KeysError: the keys can't be used.
        OSError: the port is taken, or a TLS file can't be read.
    """
    gateway = make_gateway(settings)
    followers = [*gateway.fleet.followers, gateway.claims]
    started: list[TopicFollower] = []
    try:
        await gateway.exchange.start()
        for follower in followers:
            await follower.start()
            started.append(follower)
            gateway.following.append(asyncio.create_task(_follow(follower)))
        async with listening(gateway) as port:
            yield gateway, port
    finally:
        await gateway.finish(FINISH_S_MAX)
        for task in gateway.following:
            task.cancel()
        await asyncio.gather(*gateway.following, return_exceptions=True)
        for follower in started:
            await follower.stop()
        await gateway.exchange.stop()
        await asyncio.to_thread(gateway.telemetry.close)


def make_gateway(settings: Settings) -> Gateway:
    """Return the parts of a process; none has been started.

    Raises:
        KeysError: the keys can't be used.
        TelemetryError: the ``OTEL_*`` variables ask for what can't be had.
    """
    clock = SystemClock()
    secret = settings.key_secret
    return Gateway(
        settings,
        Exchange(settings),
        FleetState(settings, clock),
        ClaimFollower(settings),
        ApiKeys(settings.gateway_keys, settings.gateway_host),
        clock,
        KeyProofs(None if secret is None else secret.get_secret_value()),
        from_environment("gateway", settings.instance),
    )


@contextlib.asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[int]:
    """Take connections, and provide the port; what is open may end when the block does.

    Raises:
        OSError: the port is taken, or a TLS file can't be read.
    """
    settings = gateway.settings
    tls = tls_of(settings)
    runner = web.AppRunner(
        create_app(gateway), handler_cancellation=True, shutdown_timeout=STOP_S_MAX, **OPTIONS
    )
    sockets: asyncio.Server | None = None
    try:
        await runner.setup()
        server = runner.server
        if server is None:
            raise AssertionError("the runner has been set up")
        sockets = await asyncio.get_running_loop().create_server(
            lambda: Connection(server, settings.gateway_read_s_max),
            settings.gateway_host,
            settings.gateway_port,
            ssl=tls,
            backlog=BACKLOG,
        )
        yield sockets.sockets[0].getsockname()[1]
    finally:
        gateway.is_stopping = True
        if sockets is not None:
            sockets.close()
        await runner.cleanup()


async def _follow(follower: TopicFollower) -> None:
    while True:
        await follower.step(timeout_s=FOLLOW_S)


async def run_gateway(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        KeysError: the keys can't be used.
        OSError: the port is taken, or a TLS file can't be read.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        if not stop.is_set():
            limit_stop(loop.time, STOP_S_MAX)
        stop.set()

    async with serving(settings) as (gateway, port):
        scheme = "http" if settings.gateway_tls_cert is None else "https"
        # Not before: until it serves it has nothing to end, and Kafka may keep it from starting.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told_to_stop)
        logger.info("the gateway answers at %s://%s:%d", scheme, settings.gateway_host, port)
        tasks = [
            asyncio.create_task(stop.wait()),
            asyncio.create_task(gateway.exchange.failed()),
            asyncio.create_task(_refresh(gateway)),
        ]
        # Those that follow go on meanwhile: requests that are open may wait for what they read.
        done, _ = await asyncio.wait(
            [*tasks, *gateway.following], return_when=asyncio.FIRST_COMPLETED
        )
        for task in tasks:
            task.cancel()
        for task in done:
            task.result()


async def _refresh(gateway: Gateway) -> None:
    """Read what may change while the process runs."""
    while True:
        await asyncio.sleep(KEYS_EVERY_S)
        gateway.keys.refresh()


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS that the settings name; None for plain HTTP.

    Raises:
        OSError: a file can't be read.
        KeyFileError: others may read the private key, or one of the two files is missing.
    """
    certificate, key = settings.gateway_tls_cert, settings.gateway_tls_key
    if certificate is None:
        if key is not None:
            raise KeyFileError(
                "SHUNTER_GATEWAY_TLS_KEY is set and SHUNTER_GATEWAY_TLS_CERT is not: name the"
                " certificate too, or unset the key to speak plain HTTP"
            )
        return None
    if key is None and b"PRIVATE KEY-----" not in certificate.read_bytes():
        raise KeyFileError(
            f"SHUNTER_GATEWAY_TLS_KEY is unset, and {certificate} has no private key: name its file"
        )
    check_key_file(key or certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    # It is asyncio's, of all that speaks TLS in this process.
    sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
    return context
