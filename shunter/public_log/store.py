"""Stores of a log's files: a directory, an object store, or, to read alone, a web server."""

import contextlib
import fcntl
import gzip
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from topics import durable_files
from topics.objects import Objects, ObjectsError

FILE_BYTES_MAX = 64 * 1024 * 1024
ANSWER_S_MAX = 30.0


class LogStoreError(Exception):
    """A log's files can't be read or written; the message says which, why and what to do."""


class LogReader(Protocol):
    """The files of a log, by their paths below its prefix."""

    @property
    def url(self) -> str:
        """The place, for people."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return a file, None where there is none. Raises LogStoreError."""
        ...


class LogStore(LogReader, Protocol):
    """A place that a log writes to. Each call may raise LogStoreError; what it wrote is durable."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all, over whatever was there."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that isn't there yet, whole or not at all; False where another was first."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, in order."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file that may be gone already."""
        ...

    def claim(self) -> None:
        """Have the place to oneself, as far as it can tell others of that."""
        ...


class DirectoryStore:
    """A directory of this machine. Files and their names are synced before a call returns."""

    def __init__(self, path: Path) -> None:
        self._root = path
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """The directory."""
        return str(self._root)

    def claim(self) -> None:
        """Lock the directory as long as the process lives."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LogStoreError(
                f"{self._root}: another process writes this log; stop it"
            ) from error
        except OSError as error:
            raise LogStoreError(f"{self._root}: {error.strerror}") from error

    def release(self) -> None:
        """Let another process have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, path: str) -> bytes | None:
        """Return a file."""
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LogStoreError(f"{self._root / path}: {error.strerror}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole; the claim keeps other processes out."""
        try:
            durable_files.write_whole(self._place(path), data, is_alone=True)
        except OSError as error:
            raise LogStoreError(f"{self._root / path}: {error.strerror}") from error

    def create(self, path: str, data: bytes) -> bool:
        """Write a file, whole, unless the name is taken."""
        try:
            return durable_files.create_exclusive(self._place(path), data, is_alone=True)
        except OSError as error:
            raise LogStoreError(f"{self._root / path}: {error.strerror}") from error

    def names(self, folder: str) -> list[str]:
        """Return the names of files that are whole."""
        try:
            found = [path.name for path in (self._root / folder).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LogStoreError(f"{self._root / folder}: {error.strerror}") from error
        return sorted(name for name in found if not name.startswith("."))

    def delete(self, path: str) -> None:
        """Delete a file; one that comes back after a crash does no harm."""
        try:
            (self._root / path).unlink(missing_ok=True)
        except OSError as error:
            raise LogStoreError(f"{self._root / path}: {error.strerror}") from error

    def _place(self, path: str) -> Path:
        place = self._root / path
        durable_files.make_folder(place.parent)
        return place


class ObjectStore:
    """An object store that fsspec knows, and that creates objects only where there is none.

    Without that condition two processes could both append; a store without it is refused.
    """

    def __init__(self, url: str) -> None:
        with _told():
            self._objects = Objects(url)
        self.url = url

    def claim(self) -> None:
        """Check that the store keeps the condition on which the log relies."""
        with _told():
            self._objects.check("journal/probe")

    def read(self, path: str) -> bytes | None:
        """Return an object."""
        with _told():
            return self._objects.read(path)

    def write(self, path: str, data: bytes) -> None:
        """Put an object, which appears as a whole."""
        with _told():
            self._objects.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object on the condition that there is none."""
        with _told():
            return self._objects.create(path, data)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, as the store has them now."""
        with _told():
            return self._objects.names(folder)

    def delete(self, path: str) -> None:
        """Delete an object."""
        with _told():
            self._objects.delete(path)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ObjectsError as error:
        raise LogStoreError(str(error)) from error


class WebReader:
    """A log on any web server that serves its files."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def read(self, path: str) -> bytes | None:
        """Fetch a file, of at most 64 MiB."""
        # The scheme is http or https: see open_reader.
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/{path}", headers={"Accept-Encoding": "gzip"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as answer:  # noqa: S310
                data: bytes = answer.read(FILE_BYTES_MAX + 1)
                packed = answer.headers.get("Content-Encoding") == "gzip"
            if packed:
                data = _unpacked(data)
        except urllib.error.HTTPError as error:
            if error.code in {404, 410}:
                return None
            raise LogStoreError(f"{self.url}/{path}: HTTP {error.code}") from error
        except (OSError, ValueError, EOFError) as error:
            raise LogStoreError(f"{self.url}/{path}: {error}") from error
        if len(data) > FILE_BYTES_MAX:
            raise LogStoreError(f"{self.url}/{path}: longer than any file of a log")
        return data


def open_store(url: str) -> LogStore:
    """Return the place of a log to write.

    Raises:
        LogStoreError: it can't be one.
    """
    if url.startswith(("http://", "https://")):
        raise LogStoreError(f"{url}: a log is written to a directory or an object store")
    return ObjectStore(url) if "://" in url else DirectoryStore(Path(url))


def open_reader(url: str) -> LogReader:
    """Return a log to read, from a directory, an object store or a web server.

    Raises:
        LogStoreError: it can't be one.
    """
    return WebReader(url) if url.startswith(("http://", "https://")) else open_store(url)


def _unpacked(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(FILE_BYTES_MAX + 1)
