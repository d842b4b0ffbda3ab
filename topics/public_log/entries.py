"""Entries of the log: a signed root without its leaf hashes, as canonical JSON."""

from dataclasses import dataclass

from pydantic import ConfigDict

from topics.public_log.tiles import ENTRY_BYTES_MAX
from topics.signing.signed_root import Root, RootStatement
from topics.wire.canonical_json import canonical
from topics.wire.codec import decode


@dataclass(frozen=True, slots=True)
class LoggedRoot:
    """The log's entry of a root. The tree hash in its statement stands for the leaves."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    statement: RootStatement
    signature: str


def entry_of(value: bytes | None) -> bytes | None:
    """Return the entry of a record of the roots topic; None if it is no root, or far too long."""
    try:
        root = decode(Root, value or b"")
        entry = canonical(LoggedRoot(root.statement, root.signature))
    except ValueError:
        return None
    return entry if len(entry) <= ENTRY_BYTES_MAX else None


def parse_entry(entry: bytes) -> LoggedRoot:
    """Return the root that an entry names.

    Raises:
        BadRecordError: it names none.
    """
    return decode(LoggedRoot, entry)
