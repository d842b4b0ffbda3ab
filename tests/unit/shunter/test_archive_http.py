"""An archive on a web server: read as from a directory, and an error where it does not answer."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from shunter.archive import layout
from shunter.archive.layout import KINDS, Archive, ArchiveError
from shunter.archive.rows import SCHEMAS
from shunter.audit.archive_trail import find_request
from shunter.cli import app
from shunter.console import UserError
from shunter.logs.reading import Kind

SILENT_S_MAX = 0.5


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SILENT_S_MAX", SILENT_S_MAX)


class Handler(SimpleHTTPRequestHandler):
    """Lists a directory; with a mode it gives no file whole."""

    mode = ""

    def do_GET(self) -> None:
        if not self.mode or not self.path.endswith(".parquet"):
            super().do_GET()
        elif self.mode == "silent":
            time.sleep(20 * SILENT_S_MAX)
        elif self.mode == "fails":
            self.send_error(500)
        else:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"PAR1")
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def row(number: int, offset: int, request_id: str) -> dict[str, Any]:
    told = {"request_id": request_id, "key": request_id.encode(), "value": f"{{{offset}}}"}
    return {"partition": number, "offset": offset, "timestamp_ms": 1_800_000_000_000} | told


def table_of(rows: list[dict[str, Any]], kind: Kind) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMAS[kind])


@pytest.fixture
def url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An archive of one file on a server that does as the test's parameter says."""
    archive = Archive(str(tmp_path))
    archive.write("keys", 0, (0, 1), 1.8e9, table_of([], "keys"))
    for number, first in ((0, 7), (1, 4)):
        rows = [row(number, first + n, f"request-{n}") for n in range(3)]
        span = (first, first + 3)
        archive.write("evidence", number, span, 1.8e9, table_of(rows, "evidence"))
    handler = type("Bad", (Handler,), {"mode": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("url", [""], indirect=True)
def test_what_a_web_server_lists_is_what_a_directory_has(url: str, tmp_path: Path) -> None:
    directory, web = Archive(str(tmp_path)), Archive(url)
    for kind in KINDS:
        held = [replace(file, path="") for file in directory.files(kind)]
        assert [replace(file, path="") for file in web.files(kind)] == held
    assert web.listed("evidence")[1] == []


@pytest.mark.parametrize("url", [""], indirect=True)
def test_a_request_is_found_on_a_web_server_as_in_a_directory(url: str, tmp_path: Path) -> None:
    found = find_request(Archive(url), "request-1")
    assert [(row.partition, row.offset) for row in found] == [(0, 8), (1, 5)]
    assert found == find_request(Archive(str(tmp_path)), "request-1")


@pytest.mark.parametrize("url", ["silent", "breaks off", "fails"], indirect=True)
def test_a_file_that_does_not_come_whole_is_an_error_that_names_it(url: str) -> None:
    archive = Archive(url)
    (file,) = archive.files("keys")
    began_at = time.monotonic()
    with pytest.raises(ArchiveError, match=r"0-00000000000000000000-.*\.parquet: .+"):
        archive.read(file)
    assert time.monotonic() - began_at < 10 * SILENT_S_MAX


def test_a_server_that_takes_connections_and_never_answers_is_told_within_a_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/archive"
        archive, began_at = Archive(url), time.monotonic()
        with pytest.raises(ArchiveError, match=f"{url}: can't be reached or read: .+"):
            archive.files("keys")
        assert time.monotonic() - began_at < 10 * SILENT_S_MAX


def test_an_archive_is_not_written_to_a_web_server() -> None:
    told = CliRunner().invoke(app, ["evidence", "archive", "--to", "http://127.0.0.1:1/x"])
    assert (told.exit_code, type(told.exception)) == (1, UserError)
    assert "http://127.0.0.1:1/x: an archive is written to a directory" in str(told.exception)
