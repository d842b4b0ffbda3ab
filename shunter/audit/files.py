"""An auditor's files: public keys, and the heads of the last verification."""

from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from shunter.audit.keyring import Keyring
from shunter.console import UserError
from topics import ChainHead, KeyEntry
from topics.wire.codec import describe

T = TypeVar("T")

_ENTRIES = TypeAdapter(list[KeyEntry])
_HEADS = TypeAdapter(dict[str, ChainHead])


def write_keys(path: Path, keyring: Keyring) -> int:
    """Write the keys and revocations of a keyring; return the number of keys.

    Raises:
        OSError: the file can't be written.
    """
    keys = list(keyring.published())
    entries = [KeyEntry(published=key) for key in keys]
    for key in keys:
        revocation = keyring.revocation(key.statement.key)
        if revocation is not None:
            entries.append(KeyEntry(revocation=revocation))
    path.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
    return len(keys)


def load_keyring(path: Path | None) -> Keyring:
    """Return a keyring that trusts a file's keys alone, or any key if there is no file.

    Raises:
        UserError: the file is no such file.
    """
    if path is None:
        return Keyring()
    entries = _read(path, _ENTRIES)
    ids = frozenset(e.published.statement.key for e in entries if e.published is not None)
    keyring = Keyring(trusted=ids)
    for entry in entries:
        keyring.add(entry, str(path))
    if keyring.refused:
        _, why = keyring.refused[0]
        raise UserError(f"{path}: {why}")
    return keyring


def load_heads(path: Path | None) -> dict[str, tuple[ChainHead, str]]:
    """Return the heads of a file, each with the file's name; empty if it doesn't exist yet.

    Raises:
        UserError: the file is no such file.
    """
    if path is None or not path.exists():
        return {}
    return {chain: (head, str(path)) for chain, head in _read(path, _HEADS).items()}


def write_heads(path: Path, heads: dict[str, ChainHead]) -> None:
    """Write heads, for the next verification.

    Raises:
        OSError: the file can't be written.
    """
    path.write_bytes(orjson.dumps(heads, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def _read(path: Path, kind: "TypeAdapter[T]") -> T:
    try:
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from error
