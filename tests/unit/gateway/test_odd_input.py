"""Bytes that are no UTF-8, odd forms and expectations end as errors of the API, or harm nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.files.endpoints import FIELDS_MAX
from gateway.server import listening, make_gateway
from topics import Settings

HEAD = b"Host: x\r\nAuthorization: Bearer k\r\nConnection: close\r\n"
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
PURPOSE = (b'name="purpose"', b"batch")


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """A gateway before no Kafka."""
    settings = Settings(
        gateway_port=0, bootstrap_servers="127.0.0.1:1", gateway_files=str(tmp_path / "files")
    )
    async with listening(make_gateway(settings)) as found:
        yield found


async def post(port: int, path: str, head: bytes, body: bytes) -> tuple[int, Any]:
    """Status and JSON body of the answer, which names its request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        line = f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
        writer.write(line + HEAD + head + b"\r\n" + body)
        async with asyncio.timeout(90):
            answer, _, told = (await reader.read()).partition(b"\r\n\r\n")
        assert b"\r\nx-request-id: req_" in answer.lower()
        return int(answer.split()[1]), json.loads(told)
    finally:
        writer.close()


async def upload(port: int, *parts: tuple[bytes, bytes]) -> tuple[int, Any]:
    """Send a form of these parts: what their disposition has, and what is in them."""
    form = b"".join(
        b"--x\r\nContent-Disposition: form-data; " + told + b"\r\n\r\n" + data + b"\r\n"
        for told, data in parts
    )
    head = b"Content-Type: multipart/form-data; boundary=x\r\n"
    return await post(port, "/v1/files", head, form + b"--x--\r\n")


async def test_a_file_name_that_is_no_utf8_is_kept_as_far_as_it_is(port: int) -> None:
    status, told = await upload(port, PURPOSE, (b'name="file"; filename="\xff\xfea.jsonl"', b"{}"))
    assert (status, told["filename"]) == (200, "??a.jsonl")


@pytest.mark.parametrize("name", [b'filename="a\x01b"', b'filename="a\x00b"'])
async def test_a_form_with_control_characters_in_a_head_is_refused(port: int, name: bytes) -> None:
    status, told = await upload(port, PURPOSE, (b'name="file"; ' + name, b"{}"))
    assert (status, told["error"]["code"]) == (400, "invalid_value")


async def test_a_form_of_many_fields_is_refused_before_it_is_read(port: int) -> None:
    many = [(b'name="f%d"' % n, b"x") for n in range(FIELDS_MAX)]
    status, told = await upload(port, *many, PURPOSE)
    assert (status, told["error"]["code"]) == (400, "invalid_value")
    assert f"more than {FIELDS_MAX} fields" in told["error"]["message"]


async def test_a_field_whose_name_is_no_utf8_is_named_in_json(port: int) -> None:
    status, told = await upload(port, (b'name="\xff"', b"x" * 2000), PURPOSE)
    assert (status, told["error"]["param"]) == (400, "?")


async def test_an_idempotency_key_that_is_no_utf8_is_refused(port: int) -> None:
    head = b"Content-Type: application/json\r\nIdempotency-Key: \xff\xfe\r\n"
    status, told = await post(port, "/v1/chat/completions", head, CHAT)
    assert (status, told["error"]["param"]) == (400, "Idempotency-Key")


async def test_what_is_expected_of_the_server_is_answered_in_json(port: int) -> None:
    head = b"Content-Type: application/json\r\nExpect: 200-ok\r\n"
    status, told = await post(port, "/v1/chat/completions", head, CHAT)
    assert (status, told["error"]["param"]) == (417, "Expect")


async def test_the_message_names_the_field_at_fault(port: int) -> None:
    body = json.loads(CHAT) | {"shunter": {"deadline": "soon"}}
    head = b"Content-Type: application/json\r\n"
    _, told = await post(port, "/v1/chat/completions", head, json.dumps(body).encode())
    assert told["error"]["param"] == "shunter.deadline"
    assert told["error"]["message"].startswith("deadline: ")


@pytest.mark.parametrize(
    ("second", "status", "param"),
    [
        (b"Authorization: Bearer other\r\n", 401, "Authorization"),
        (b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n", 400, "Idempotency-Key"),
    ],
)
async def test_two_that_differ_are_refused(
    port: int, second: bytes, status: int, param: str
) -> None:
    head = b"Content-Type: application/json\r\n" + second
    found, told = await post(port, "/v1/chat/completions", head, CHAT)
    assert (found, told["error"]["param"]) == (status, param)
