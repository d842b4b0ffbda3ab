"""HTTP client of a model server: one pool of connections, and errors as CallError."""

import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from policies.config.fleet import OpenAIBackendConfig as Declared
from streams.engine.trace_context import Context
from topics.credentials import conceal
from workers.backends.base import BackendSettingError, CallError
from workers.backends.openai.answers import bad_answer
from workers.backends.openai.sse import too_large

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}

logger = logging.getLogger(__name__)


class OpenAIServer:
    """A declared model server. Redirects are not followed, cookies not kept.

    Raises:
        BackendSettingError: the key or the authorities can't be read.
    """

    def __init__(self, pool: str, declared: Declared, connections_max: int) -> None:
        self._declared = declared
        self._base_url = declared.base_url.rstrip("/")
        self._connections_max = connections_max
        self._headers = _headers(pool, declared)
        self._ssl = _trust(pool, declared)
        self._session: aiohttp.ClientSession | None = None

    @property
    def first_token_s_max(self) -> float:
        """The seconds within which its first token should come."""
        return self._declared.first_token_s_max

    async def open(self) -> None:
        """Create the connection pool; nothing is sent."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections_max, ssl=self._ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Callers bound the time; the client's own limits would say less of what was late.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._declared.connect_s_max),
            # Whatever is compressed could be a thousand times longer than what was sent.
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def post(
        self, path: str, body: dict[str, Any], context: Context | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield the answer, whose body is still to be read.

        Leaving early closes the connection, which tells the server that nobody waits. A server
        that traces has its spans below that of ``context``.

        Raises:
            CallError: no answer came, or the connection broke while it was read.
        """
        url, headers = f"{self._base_url}/{path}", self._headers
        if context is not None and context.span_id:
            headers = headers | {"traceparent": context.header().decode()}
        async with self._opened("POST", url, headers, orjson.dumps(body)) as response:
            yield response

    @contextlib.asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Get a page of the server as ``post`` does. The key is not sent."""
        async with self._opened("GET", url, {}, None) as response:
            yield response

    @contextlib.asynccontextmanager
    async def _opened(
        self, method: str, url: str, headers: dict[str, str], data: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None  # noqa: S101  made when we start
        with _connecting():
            response = await self._session.request(
                method,
                url,
                data=data,
                headers={"Accept-Encoding": "identity"} | headers,
                allow_redirects=False,
            )
        try:
            with _reading():
                yield response
        except BaseException:
            response.close()
            raise
        finally:
            response.release()


async def read_body(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Return a body that is not streamed.

    Raises:
        CallError: it is too long.
    """
    found = bytearray()
    async for piece in response.content.iter_any():
        found += piece
        if len(found) > bytes_max:
            raise too_large(bytes_max)
    return bytes(found)


@contextlib.contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        message = "the server's certificate is not trusted; see backend.ca_file"
        raise CallError("tls", message, retry="elsewhere", is_pool_fault=True) from error
    except (aiohttp.ClientConnectionError, aiohttp.ServerTimeoutError, OSError) as error:
        # Refused, reset before an answer began, or a kept connection that the server had closed.
        message = f"the server can't be reached: {type(error).__name__}"
        raise CallError("connect", message, retry="here", is_pool_fault=True) from error
    except aiohttp.ClientError as error:
        raise bad_answer(f"{type(error).__name__} before its body") from error


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        message = f"the server's answer broke off: {type(error).__name__}"
        raise CallError(
            "connection_lost", message, retry="elsewhere", is_pool_fault=True
        ) from error


def _headers(pool: str, declared: Declared) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    name = declared.api_key_env
    if name is None:
        return headers
    key = os.environ.get(name, "").strip()
    where = f"pools.{pool}.backend.api_key_env: the environment variable {name}"
    if not key:
        raise BackendSettingError(f"{where} is not set; it should hold the server's key")
    if not key.isascii() or not key.isprintable():
        raise BackendSettingError(f"{where} holds what no key can have; is it of one line?")
    conceal(key)
    parts = urlsplit(declared.base_url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        logger.warning("pool %s sends its key unencrypted: base_url is not https", pool)
    return headers | {"Authorization": f"Bearer {key}"}


def _trust(pool: str, declared: Declared) -> ssl.SSLContext | bool:
    if declared.ca_file is None:
        # The machine's authorities, of which aiohttp has read the hundreds already.
        return True
    try:
        return ssl.create_default_context(cafile=declared.ca_file)
    except OSError as error:
        where = f"pools.{pool}.backend.ca_file: {declared.ca_file}"
        raise BackendSettingError(f"{where} can't be read as PEM: {error}") from error
