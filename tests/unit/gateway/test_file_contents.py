"""Contents of files over HTTP: whole, or a range of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

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
