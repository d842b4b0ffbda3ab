"""Files that are there as a whole or not at all, whenever the process is killed."""

import os
import secrets
from pathlib import Path

MODE = 0o666


def write_whole(path: Path, data: bytes, *, mode: int = MODE, is_alone: bool = False) -> None:
    """Write a file, or replace it: a reader sees the old one or the new one.

    Args:
        path: the file; its folder is there.
        data: what it shall hold.
        mode: its permissions from its creation on, less the umask.
        is_alone: whether no other process writes this file at the same time. What a killed process
            left of it is then deleted; otherwise nobody can tell it from what another is writing.

    Raises:
        OSError: the file can't be written.
    """
    replace(_aside(path, data, mode, is_alone=is_alone), path)


def create_exclusive(path: Path, data: bytes, *, is_alone: bool = False) -> bool:
    """Write a file unless it is there; return whether this call made it. See ``write_whole``."""
    aside = _aside(path, data, MODE, is_alone=is_alone)
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    sync_folder(path.parent)
    return True


def replace(source: Path, target: Path) -> None:
    """Give a written file or folder its name, over the one that had it."""
    source.replace(target)
    sync_folder(target.parent)


def append(descriptor: int, data: bytes) -> None:
    """Append to an open file. After an error its end may be half a line."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync(descriptor: int) -> None:
    """Wait until the disk has what was appended."""
    os.fdatasync(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; the disk has their names before this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> bool:
    """Delete a file; return whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _aside(path: Path, data: bytes, mode: int, *, is_alone: bool) -> Path:
    suffix = "new" if is_alone else secrets.token_hex(8)
    aside = path.with_name(f".{path.name}.{suffix}")
    if is_alone:
        aside.unlink(missing_ok=True)
    # Exclusive, and through no link: nobody else has made it, to read or to move what is written.
    made = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(made, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return aside
