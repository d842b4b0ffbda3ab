"""Contents of files over HTTP: whole, or a range of them."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.files import endpoints
from gateway.files.store import FILE_BYTES_MAX
from gateway.server import listening, make_gateway
from topics import Settings

TEXT = bytes(range(256)) * 4096


@pytest.fixture(params=["directory", "objects"])
async def contents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a file's contents at a gateway without Kafka."""
    place = str(tmp_path) if request.param == "directory" else f"memory://{tmp_path}"
    settings = Settings(gateway_port=0, gateway_files=place, bootstrap_servers="127.0.0.1:1")
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", TEXT, filename="in.jsonl")
    async with (
        listening(make_gateway(settings)) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}/", headers=KEY) as session,
        session.post("/v1/files", data=form) as answer,
    ):
        file = await answer.json()
        assert file["bytes"] == len(TEXT)
        yield f"http://127.0.0.1:{port}/v1/files/{file['id']}/content"


KEY = {"Authorization": "Bearer k"}


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        (None, 200, 0, len(TEXT)),
        ("bytes=0-9", 206, 0, 10),
        ("bytes=300000-", 206, 300_000, len(TEXT)),
        ("bytes=-7", 206, len(TEXT) - 7, len(TEXT)),
        ("bytes=5-99999999", 206, 5, len(TEXT)),
        ("nonsense", 200, 0, len(TEXT)),
    ],
)
async def test_a_range_of_a_file(
    contents: str, asked: str | None, status: int, start: int, stop: int
) -> None:
    headers = KEY | ({} if asked is None else {"Range": asked})
    async with aiohttp.request("GET", contents, headers=headers) as answer:
        assert (answer.status, await answer.read()) == (status, TEXT[start:stop])
        told = answer.headers.get("Content-Range")
    assert told == (f"bytes {start}-{stop - 1}/{len(TEXT)}" if status == 206 else None)


async def test_a_range_that_is_not_there(contents: str) -> None:
    headers = KEY | {"Range": f"bytes={len(TEXT)}-"}
    async with aiohttp.request("GET", contents, headers=headers) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(TEXT)}"
    async with aiohttp.request("HEAD", contents, headers=KEY) as answer:
        assert (answer.status, answer.content_length) == (200, len(TEXT))


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_file_of_just_the_limit_is_taken_and_one_byte_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_length: bool
) -> None:
    assert FILE_BYTES_MAX >= 200_000_000
    # Of more than what may stand around a file, so that a length alone tells of too much.
    limit = len(TEXT)
    monkeypatch.setattr(endpoints, "FILE_BYTES_MAX", limit)
    settings = Settings(
        gateway_port=0, gateway_files=str(tmp_path), bootstrap_servers="127.0.0.1:1"
    )
    answers = []
    async with (
        listening(make_gateway(settings)) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}/", headers=KEY) as session,
    ):
        for size in (limit, limit + 1, limit + endpoints.FORM_BYTES_MAX):
            form = aiohttp.FormData({"purpose": "batch"})
            form.add_field("file", io.BytesIO(b"x" * size), filename="in.jsonl")
            sent: object = form
            headers = {}
            if not has_length:
                body = form()
                headers = {"Content-Type": body.content_type}
                sent = _unmeasured(body)
            async with session.post("/v1/files", data=sent, headers=headers) as answer:
                told = await answer.json()
                error = told.get("error", {})
                answers.append((answer.status, told.get("bytes"), error.get("code")))
                assert answer.status == 200 or f"{limit:,} bytes" in error["message"]
    too_large = (413, None, "file_too_large")
    assert answers == [(200, limit, None), too_large, too_large]
    assert len(list(tmp_path.rglob("*.json"))) == 1


async def _unmeasured(body: aiohttp.Payload) -> AsyncIterator[bytes]:
    """The bytes of a form as a stream whose length nobody says."""
    data = await body.as_bytes()
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]
