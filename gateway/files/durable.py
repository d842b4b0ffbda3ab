"""Writes that are there as a whole or not at all, whenever the process is killed."""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, or replace it: a reader sees the old one or the new one."""
    replace(_temporary(path, data), path)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Write a file unless it is there; return whether this call made it."""
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
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


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
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


def _temporary(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary
