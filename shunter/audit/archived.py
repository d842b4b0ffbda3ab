"""The trail as it stands in an archive: verified offline, with nothing but its files."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from shunter.archive.layout import Archive, ArchiveFile, Kind
from shunter.archive.rows import value_of
from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.topic import add_key
from shunter.audit.verifier import Verifier
from topics import ChainHead

BATCH_ROWS = 10_000


class Row(NamedTuple):
    """A record of an archive. ``at`` is the time that Kafka has of it, epoch seconds."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    at: float
    where: str


def verify_archive(
    archive: Archive,
    *,
    trusted: frozenset[str] | None = None,
    witnessed: Mapping[str, tuple[ChainHead, str]] | None = None,
    keyring: Keyring | None = None,
    tell: Callable[[int], object] = lambda _count: None,
) -> Findings:
    """Verify all that an archive holds; see ``verify_topic``.

    Args:
        archive: to read.
        trusted: ids of the only keys to believe; all that are archived where None.
        witnessed: heads that the auditor knows from before, and who told them.
        keyring: keys to believe in place of those archived.
        tell: is told the number of records after each file.

    Raises:
        ArchiveError: a file can't be read.
    """
    if keyring is None:
        keyring = Keyring(trusted)
        for row in read_archive(archive, "keys"):
            add_key(keyring, row.value, row.where)
    verifier = Verifier(keyring, witnessed)
    covered = archive.covered()
    for row in read_archive(archive, "roots"):
        verifier.add_root(row.value, row.where, row.at)
    verifier.end_of_roots()
    kept_from, before = None, -1
    for file in archive.files("evidence"):
        for row in _rows_of(archive, file):
            # The first record of a partition that does not begin at its beginning.
            if row.partition != before and row.offset:
                kept_from = max(kept_from or 0.0, row.at)
            before = row.partition
            # Without a word of it, everything is held to have its root here.
            is_fresh = row.offset >= covered.get(row.partition, row.offset + 1)
            verifier.add(row.partition, row.where, row.key, row.value, is_fresh=is_fresh)
        tell(verifier.findings.records)
    return verifier.finish(kept_from)


def read_archive(archive: Archive, kind: Kind) -> Iterator[Row]:
    """Yield every record of a kind, partition by partition in the order of offsets.

    Raises:
        ArchiveError: a file can't be read.
    """
    for file in archive.files(kind):
        yield from _rows_of(archive, file)


def _rows_of(archive: Archive, file: ArchiveFile) -> Iterator[Row]:
    table = archive.read(file, ["partition", "timestamp_ms", "key", "value", "raw"])
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        for row in batch.to_pylist():
            yield Row(
                row["partition"],
                row["offset"],
                row["key"],
                value_of(row),
                row["timestamp_ms"] / 1000,
                f"{file.kind}/{row['partition']}@{row['offset']}",
            )
