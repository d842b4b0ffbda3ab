"""Input over a socket that is no request as it should be: slow, endless, too long, no TLS."""

import asyncio
import contextlib
import datetime as dt
import json
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.http.connection import LINGER_S
from gateway.server import listening, make_gateway
from streams.hosting import readiness
from topics import Settings
from topics.signing.key_files import KeyFileError

READ_S_MAX = 0.3
BYTES_MAX = 2000
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
JSON = "Content-Type: application/json\r\n"


@contextlib.asynccontextmanager
async def opened(**own: Any) -> AsyncIterator[int]:
    """A gateway before no Kafka: what is tested here is answered without one."""
    settings = Settings(
        gateway_port=0,
        gateway_read_s_max=READ_S_MAX,
        request_bytes_max=BYTES_MAX,
        bootstrap_servers="127.0.0.1:1",
        **own,
    )
    async with listening(make_gateway(settings)) as port:
        yield port


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and body of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert "\r\nx-request-id: req_" in head.lower()
    assert "\r\nserver: shunter\r\n" in head.lower()
    length = int(head.lower().partition("content-length:")[2].partition("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def asked(port: int, *pieces: str) -> tuple[int, str, bool, float]:
    """Send pieces and then no more; status, code, whether it was closed; after how many seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began_at = time.monotonic()
    try:
        for piece in pieces:
            writer.write(piece.encode())
            await writer.drain()
        async with asyncio.timeout(90):
            status, body = await answer(reader)
        took_s, is_closed = time.monotonic() - began_at, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S + 1):
                is_closed = await reader.read(1) == b""
        return status, body["error"]["code"], is_closed, took_s
    finally:
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        ("",),
        ("POST /v1/chat",),
        (HEAD,),
        (HEAD + JSON + "Content-Length: 50\r\n\r\n", '{"model":'),
        (HEAD + JSON + "Transfer-Encoding: chunked\r\n\r\n", "5\r\n{    \r\n"),
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "half a chunked body"],
)
async def test_what_does_not_come_in_time_is_408_and_closed(pieces: tuple[str, ...]) -> None:
    async with opened() as port:
        status, code, is_closed, took_s = await asked(port, *pieces)
    assert (status, code, is_closed) == (408, "request_timeout", True)
    assert READ_S_MAX * 0.9 <= took_s < READ_S_MAX + 1


async def test_a_head_that_trickles_in_is_closed_all_the_same() -> None:
    async with opened() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD.encode())

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"X-A: b\r\n")
                    await writer.drain()
                    await asyncio.sleep(READ_S_MAX / 10)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(READ_S_MAX * 5):
            status, body = await answer(reader)
        trickling.cancel()
        writer.close()
    assert (status, body["error"]["code"]) == (408, "request_timeout")


async def test_a_body_beyond_the_limit_is_413_before_more_of_it_comes() -> None:
    size = BYTES_MAX + 1
    chunk = f"{size:x}\r\n" + "x" * size + "\r\n"
    async with opened() as port:
        told = await asked(port, HEAD + JSON + f"Content-Length: {10**9}\r\n\r\n")
        assert told[:3] == (413, "request_too_large", True)
        # Without a length, and without an end.
        told = await asked(port, HEAD + JSON + "Transfer-Encoding: chunked\r\n\r\n", chunk)
        assert told[:3] == (413, "request_too_large", True)
        assert told[3] < READ_S_MAX, "it does not wait for the rest"


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/models/" + "x" * 9000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: " + "x" * 9000 + "\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\n" + "X-A: b\r\n" * 200 + "\r\n",
        "no HTTP at all\r\n\r\n",
    ],
    ids=["path", "header", "headers", "no HTTP"],
)
async def test_a_head_beyond_the_limits_is_400_and_closed(head: str) -> None:
    async with opened() as port:
        status, code, is_closed, _ = await asked(port, head)
    assert (status, code, is_closed) == (400, "invalid_http", True)


async def test_who_asks_is_settled_before_the_body_comes() -> None:
    async with opened() as port:
        head = HEAD.replace("Bearer k", "Basic k") + JSON
        told = await asked(port, head + "Content-Length: 50\r\n\r\n")
    assert told[:2] == (401, "invalid_api_key")
    assert told[3] < READ_S_MAX


def certificate(folder: Path) -> tuple[Path, Path]:
    """Files of a certificate for 127.0.0.1 and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    private.chmod(0o600)
    return pem, private


async def test_tls_by_files(tmp_path: Path) -> None:
    pem, private = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(pem))
    async with opened(gateway_tls_cert=pem, gateway_tls_key=private) as port:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting, server_hostname="localhost"
        )
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n")
        status, body = await answer(reader)
        writer.close()
        assert (status, body["object"]) == (200, "list")
        # Nothing is served in the clear, and half a handshake is given up.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
    private.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"key\.pem"):
        async with opened(gateway_tls_cert=pem, gateway_tls_key=private):
            pass


async def test_an_open_connection_over_tls_takes_little_memory(tmp_path: Path) -> None:
    pem, private = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(pem))
    writers: list[asyncio.StreamWriter] = []
    async with opened(gateway_tls_cert=pem, gateway_tls_key=private) as port:
        for number in range(22):
            if number == 2:
                tracemalloc.start()
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname="localhost"
            )
            writers.append(writer)
        now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for writer in writers:
            writer.close()
    # Both ends are in this process.
    assert now / 20 < 2 * 64 * 1024


@pytest.mark.parametrize(("given", "missing"), [("key", "CERT"), ("cert", "KEY")])
async def test_one_file_of_tls_alone_serves_nothing(
    tmp_path: Path, given: str, missing: str
) -> None:
    pem, private = certificate(tmp_path)
    own = {f"gateway_tls_{given}": {"cert": pem, "key": private}[given]}
    with pytest.raises(KeyFileError, match=f"SHUNTER_GATEWAY_TLS_{missing}"):
        async with opened(**own):
            pass


async def told(port: int, path: str) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    try:
        async with asyncio.timeout(90):
            return await answer(reader)
    finally:
        writer.close()


async def test_a_gateway_that_no_broker_answers_is_not_ready_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened() as port:
        assert await told(port, "/readyz") == (200, {"status": "ready"})
        monkeypatch.setattr(readiness, "silent_s", lambda: 11.0)
        reason = "no Kafka broker answers for 11 s"
        assert await told(port, "/readyz") == (503, {"status": "not ready", "reason": reason})
        assert await told(port, "/healthz") == (200, {"status": "up"})
