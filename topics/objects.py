"""Objects of a store that fsspec knows: each is there as a whole, or not at all."""

import contextlib
from collections.abc import Collection
from typing import Any, BinaryIO, Self

# Parts of a large object; S3 takes none below 5 MiB, and 10,000 of one object.
PART_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 4 * 1024 * 1024


class ObjectsError(OSError):
    """The store does not do what it is asked; the message says where, why and what to do."""


class Objects:
    """Objects below a URL, by paths. Each call blocks, and what it wrote is durable.

    Raises ObjectsError, as each method may.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import fsspec  # noqa: PLC0415  an optional dependency

            # A listing that was kept would hide what others write.
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            told = f"{url}: object stores need more: pip install 'shunter[objects]' ({error})"
            raise ObjectsError(told) from error
        except ValueError as error:
            raise ObjectsError(f"{url}: {error}") from error

    def check(self, probe: str) -> None:
        """Check that the store creates an object only where there is none, by one at this path.

        Raises:
            ObjectsError: it writes over objects, or can't be written.
        """
        self.create(probe, b"")
        if self.create(probe, b""):
            raise ObjectsError(
                f"{self.url}: it writes over objects that must only be created; take a store with"
                " conditional writes (S3, Google Cloud Storage, Azure), or a directory"
            )

    def read(self, path: str) -> bytes | None:
        """Return an object; None if there is none."""
        try:
            found: bytes = self._fs.cat_file(self._at(path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(path, error) from error
        return found

    def read_all(self, paths: Collection[str]) -> dict[str, bytes]:
        """Return those objects that are there, by their paths; at most a hundred."""
        if not paths:
            return {}
        places = {self._at(path): path for path in paths}
        try:
            found = self._fs.cat([*places], on_error="return")
        except Exception as error:
            raise self._failed(min(paths), error) from error
        there: dict[str, bytes] = {}
        for place, value in found.items():
            if isinstance(value, bytes):
                there[places[place]] = value
            elif not isinstance(value, FileNotFoundError):
                raise self._failed(places[place], value)
        return there

    def write(self, path: str, data: bytes) -> None:
        """Put an object, over whatever was there."""
        self._put(path, data, "overwrite")

    def create(self, path: str, data: bytes) -> bool:
        """Put an object on the condition that there is none; False where another was first."""
        try:
            self._put(path, data, "create")
        except FileExistsError:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, in order, as the store has them now."""
        try:
            self._fs.invalidate_cache()
            found: list[Any] = self._fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed(folder, error) from error
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def delete(self, path: str) -> None:
        """Delete an object, which may be gone already."""
        try:
            self._fs.rm_file(self._at(path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed(path, error) from error

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            self._fs.cp_file(self._at(source), self._at(target))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._failed(source, error) from error

    def open(self, path: str) -> BinaryIO:
        """Return an object to read piece by piece, and from any place in it.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            opened: BinaryIO = self._fs.open(self._at(path), "rb", block_size=PIECE_BYTES)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._failed(path, error) from error
        return opened

    def begin(self, path: str) -> "NewObject":
        """Return an object to write piece by piece; it is there when it is finished."""
        return NewObject(self, path)

    def begun(self, path: str) -> Any:
        """Return fsspec's file for ``NewObject``."""
        try:
            return self._fs.open(self._at(path), "wb", block_size=PART_BYTES)
        except Exception as error:
            raise self._failed(path, error) from error

    def _put(self, path: str, data: bytes, mode: str) -> None:
        try:
            self._fs.pipe_file(self._at(path), data, mode=mode)
        except FileExistsError:
            raise
        except Exception as error:
            raise self._failed(path, error) from error

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _failed(self, path: str, error: BaseException) -> ObjectsError:
        return ObjectsError(f"{self.url}/{path}: {type(error).__name__}: {error}")


class NewObject:
    """An object that is being written in parts; what is not finished is thrown away."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self._path = path
        self._file = objects.begun(path)
        self._is_over = False
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        self._do(self._file.write, piece)
        self.size += len(piece)

    def finish(self) -> None:
        """Have the object be there."""
        self._do(self._file.close)
        self._is_over = True

    def close(self) -> None:
        """Throw away what is not finished."""
        if self._is_over:
            return
        self._is_over = True
        try:
            self._do(self._file.discard)
        finally:
            # Else fsspec would finish it when the memory is freed. One in memory has no such mark.
            with contextlib.suppress(AttributeError):
                self._file.closed = True

    def _do(self, act: Any, *given: bytes) -> None:
        try:
            act(*given)
        except Exception as error:
            told = f"{self._objects.url}/{self._path}: {type(error).__name__}: {error}"
            raise ObjectsError(told) from error
