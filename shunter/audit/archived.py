"""The trail in an archive: verified offline, from its files alone."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import duckdb

from shunter.archive.layout import Archive, ArchiveError, ArchiveFile
from shunter.archive.rows import value_of
from shunter.audit.chains import Witnessed
from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.topic import add_key
from shunter.audit.verifier import Verifier
from shunter.console import UserError
from shunter.logs.reading import Kind, TrailRow
from topics import ChainHead

BATCH_ROWS = 10_000


def verify_archive(
    archive: Archive,
    *,
    keyring: Keyring | None = None,
    witnessed: Mapping[str, tuple[ChainHead, str]] | None = None,
    tell: Callable[[int], object] = lambda _count: None,
) -> Findings:
    """Verify all that an archive holds; see ``verify_topic``.

    Args:
        archive: to read.
        keyring: keys to begin with; those archived are added.
        witnessed: heads that the auditor knows from before, and their sources.
        tell: receives the number of records after each file.

    Raises:
        ArchiveError: a file can't be read.
    """
    keyring = keyring or Keyring()
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
            # Without this file, every record is expected to have its root here.
            is_fresh = row.offset >= covered.get(row.partition, row.offset + 1)
            verifier.add(row.partition, row.where, row.key, row.value, is_fresh=is_fresh)
        tell(verifier.findings.records)
    return verifier.finish(kept_from)


def read_archive(archive: Archive, kind: Kind) -> Iterator[TrailRow]:
    """Yield every record of a kind, partition by partition in the order of offsets.

    Raises:
        ArchiveError: a file can't be read.
    """
    for file in archive.files(kind):
        yield from _rows_of(archive, file)


def _rows_of(archive: Archive, file: ArchiveFile) -> Iterator[TrailRow]:
    table = archive.read(file, ["partition", "timestamp_ms", "key", "value", "raw"])
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        for row in batch.to_pylist():
            yield TrailRow(
                row["partition"],
                row["offset"],
                row["key"],
                value_of(row),
                row["timestamp_ms"] / 1000,
                f"{file.kind}/{row['partition']}@{row['offset']}",
            )


class ArchiveTrail:
    """The trail in an archive."""

    def __init__(self, url: str) -> None:
        with _told():
            self._archive = Archive(url)
            if not self._archive.files("evidence"):
                raise UserError(f"{url}: no evidence is archived there")

    def verify(
        self, keyring: Keyring, witnessed: Witnessed, tell: Callable[[int], object]
    ) -> Findings:
        """Verify the files."""
        with _told():
            return verify_archive(self._archive, keyring=keyring, witnessed=witnessed, tell=tell)

    def each(self, kind: Kind, take: Callable[[TrailRow], object]) -> None:
        """Pass on the files' records."""
        with _told():
            for row in read_archive(self._archive, kind):
                take(row)

    def of_request(self, request_id: str) -> list[TrailRow]:
        """Return a request's evidence, found by the files' own statistics."""
        with _told():
            return find_request(self._archive, request_id)

    def count(self) -> int | None:
        """Return the count of offsets, an estimate."""
        with _told():
            files = self._archive.files("evidence")
        return sum(file.next_offset - file.first_offset for file in files)


def find_request(archive: Archive, request_id: str) -> list[TrailRow]:
    """Return the evidence of a request, oldest first.

    Raises:
        ArchiveError: a file can't be read.
    """
    engine = duckdb.connect()
    if archive.is_remote:
        engine.register_filesystem(archive.fs)
    query = (
        'SELECT partition, "offset", key, value, raw, timestamp_ms FROM read_parquet(?)'
        ' WHERE request_id = ? ORDER BY partition, "offset"'
    )
    try:
        found = engine.execute(query, [archive.pattern("evidence"), request_id]).fetchall()
    except duckdb.Error as error:
        raise ArchiveError(f"{archive.url}: {error}") from error
    finally:
        engine.close()
    return [
        TrailRow(
            number,
            offset,
            key,
            raw if value is None else value.encode(),
            timestamp_ms / 1000,
            f"evidence/{number}@{offset}",
        )
        for number, offset, key, value, raw, timestamp_ms in found
    ]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ArchiveError, OSError) as error:
        raise UserError(str(error)) from error
