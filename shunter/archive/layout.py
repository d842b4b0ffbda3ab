"""The files of an archive: their paths, and the offsets in each.

    evidence/date=2026-11-24/hour=12/3-00000000000000001200-00000000000000002415.parquet

is partition 3 from offset 1200 up to 2415, excluded. A file appears whole or not at all. Nothing is
written twice, because the name of a file says what it holds.
"""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from shunter.logs.reading import Kind

KINDS: tuple[Kind, ...] = ("evidence", "roots", "keys")

# Small enough that a lookup reads little, large enough to compress.
ROW_GROUP_ROWS = 20_000
_NAME = re.compile(
    r"date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/(\d+)-(\d{20})-(\d{20})\.parquet$", re.ASCII
)
_PART = ".part"
# A web server may be silent for so long; by itself the client would wait five minutes, and again.
CONNECT_S_MAX, SILENT_S_MAX = 10.0, 30.0
_NOTHING_THERE = frozenset({404, 410})
_SUFFIX = ".parquet"


class ArchiveError(Exception):
    """The archive is unusable; the message says where and why."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """One file. ``next_offset`` is the first that it doesn't hold.

    ``date`` and ``hour`` are those of its first record, UTC.
    """

    path: str
    kind: Kind
    date: str
    hour: str
    partition: int
    first_offset: int
    next_offset: int


class Archive:
    """An archive at a URL that fsspec knows, or in a directory."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_web = url.startswith(("http://", "https://"))
        """True of a web server's, which lists names in its own way and tells no times of files."""
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, **(_limits() if self.is_web else {}))
        except (ValueError, ImportError) as error:
            raise ArchiveError(f"{url}: {error}") from error
        except OSError as error:
            raise ArchiveError(f"{url}: can't be reached or read: {error}") from error

    @property
    def is_remote(self) -> bool:
        """Return whether it is not a directory of this machine."""
        return not isinstance(self.fs, LocalFileSystem)

    def files(self, kind: Kind) -> list[ArchiveFile]:
        """Return the files of a kind, by partition and offset.

        Raises:
            ArchiveError: two of them hold the same offset, so that two archivers have written; or
                whether there are any can't be found out.
        """
        return self.listed(kind)[0]

    def listed(self, kind: Kind) -> tuple[list[ArchiveFile], list[str]]:
        """Return the files of a kind, and the paths that queries take for one, and are none.

        Raises:
            ArchiveError: as ``files``.
        """
        paths = self._paths(f"{self.root}/{kind}")
        files = sorted(self._parse(kind, paths), key=lambda f: (f.partition, f.first_offset))
        for before, after in itertools.pairwise(files):
            if before.partition == after.partition and after.first_offset < before.next_offset:
                raise ArchiveError(f"{before.path} and {after.path} hold the same offsets")
        own = {file.path for file in files}
        return files, [path for path in paths if path.endswith(_SUFFIX) and path not in own]

    def next_offsets(self, kind: Kind) -> dict[int, int]:
        """Return, by partition, the first offset that no file holds."""
        return {file.partition: file.next_offset for file in self.files(kind)}

    def write(
        self, kind: Kind, partition: int, offsets: tuple[int, int], at: float, table: pa.Table
    ) -> ArchiveFile:
        """Write a file, sorted by its first column, so that its statistics narrow a search.

        Args:
            kind: the kind of record.
            partition: the topic's.
            offsets: the first, and the first that isn't held.
            at: the time of its first record, epoch seconds.
            table: its rows.
        """
        time = datetime.fromtimestamp(at, UTC)
        name = f"{partition}-{offsets[0]:020d}-{offsets[1]:020d}.parquet"
        folder = f"{self.root}/{kind}/date={time:%Y-%m-%d}/hour={time:%H}"
        path = f"{folder}/{name}"
        self.fs.makedirs(folder, exist_ok=True)
        with self.fs.open(path + _PART, "wb") as file:
            pq.write_table(
                table.sort_by(table.column_names[0]),
                file,
                compression="zstd",
                row_group_size=ROW_GROUP_ROWS,
                write_page_index=True,
            )
            _to_disk(file)
        self.fs.mv(path + _PART, path)
        return ArchiveFile(path, kind, f"{time:%Y-%m-%d}", f"{time:%H}", partition, *offsets)

    def read(self, file: ArchiveFile, columns: list[str] | None = None) -> pa.Table:
        """Return columns of a file, all of them if None, in the order of offsets.

        Raises:
            ArchiveError: it is no such file.
        """
        wanted = None if columns is None else [*columns, "offset"]
        try:
            # Arrow's threads hold what they read from until after the read has ended. If that were
            # a file object of Python's, a process that ends just then could be aborted.
            source = pa.BufferReader(self.fs.cat_file(file.path)) if self.is_remote else file.path
            with pq.ParquetFile(source) as opened:
                return opened.read(columns=wanted).sort_by("offset")
        except Exception as error:
            # Stores raise what they like.
            why = str(error) or type(error).__name__
            raise ArchiveError(f"{file.path}: {why}") from error

    def delete(self, file: ArchiveFile) -> None:
        """Delete a file."""
        self.fs.rm_file(file.path)

    def addresses(self, kind: Kind) -> list[str]:
        """Return what a query engine is told to read: all files of a kind, and no strays."""
        paths = [file.path for file in self.files(kind)]
        return [self.fs.unstrip_protocol(path) for path in paths] if self.is_remote else paths

    def _paths(self, folder: str) -> list[str]:
        """Return the paths in a folder; none where there is no such folder."""
        try:
            # What exists() says of a store that does not answer is that there is nothing.
            self.fs.info(folder)
            found: list[str] = self.fs.find(folder)
        except Exception as error:
            if _is_absent(error):
                return []
            # Stores raise what they like.
            cause = error.__cause__ or error
            why = str(cause) or type(cause).__name__
            raise ArchiveError(f"{self.url}: can't be reached or read: {why}") from error
        return found

    def _parse(self, kind: Kind, paths: list[str]) -> Iterator[ArchiveFile]:
        for path in paths:
            # A web server may list `date=` as `date%3D`; it is asked for as it was listed.
            match = _NAME.search(unquote(path) if self.is_web else path)
            if match:
                date, hour, number, first, following = match.groups()
                span = int(first), int(following)
                yield ArchiveFile(path, kind, date, hour, int(number), *span)


def _limits() -> dict[str, Any]:
    """Return the options of fsspec for a web server that may be silent."""
    import aiohttp  # noqa: PLC0415 - of archives on web servers alone

    limit = aiohttp.ClientTimeout(sock_connect=CONNECT_S_MAX, sock_read=SILENT_S_MAX)
    return {"client_kwargs": {"timeout": limit}}


def _is_absent(error: Exception) -> bool:
    """Return whether a store that was asked has said that there is nothing."""
    if not isinstance(error, FileNotFoundError):
        return False
    # Over HTTP whatever goes wrong is such an error, of another one.
    cause = error.__cause__
    return cause is None or getattr(cause, "status", None) in _NOTHING_THERE


def _to_disk(file: Any) -> None:
    """Sync a local file; an object store has it when it is closed."""
    raw = getattr(file, "f", None)
    if raw is not None and hasattr(raw, "fileno"):
        file.flush()
        os.fsync(raw.fileno())
