"""Files of private keys: their permissions, and how they are written."""

import os
import stat
from pathlib import Path

from topics.durable_files import write_whole


class KeyFileError(ValueError):
    """A key file that can't be used; the message says which, why and what to do."""


def check_key_file(path: Path) -> None:
    """Check that only the owner can read a private key.

    One exception is how Kubernetes gives a secret to a process: the file is root's, and a group
    of the process may read it (``fsGroup``).

    Raises:
        KeyFileError: others may read or write it.
        OSError: its status can't be read.
    """
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    groups = {os.getegid(), *os.getgroups()}
    is_mounted = found.st_uid == 0 and found.st_gid in groups
    allowed = 0o740 if is_mounted else 0o700
    if mode & 0o777 & ~allowed:
        raise KeyFileError(
            f"{path}: its mode is {mode:04o}, so that others than its owner may use this private"
            f" key; run `chmod 600 {path}`"
        )


def write_key_file(path: Path, text: bytes) -> None:
    """Write a private key that only its owner can read, from its creation on.

    A crash leaves the old key or the new one.

    Raises:
        OSError: the file can't be written.
    """
    write_whole(path, text, mode=0o600, is_alone=True)
