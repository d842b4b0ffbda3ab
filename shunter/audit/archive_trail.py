"""The trail in an archive: verified offline, from its files alone."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import duckdb
import pyarrow.compute as pc

from shunter.archive.layout import Archive, ArchiveError, ArchiveFile
from shunter.audit.archived_steps import ArchivedStep
from shunter.audit.chains import Witnessed
from shunter.audit.columns import BATCH_ROWS, check_file, checked_rows, rows_of
from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.options import AuditOptions
from shunter.audit.terms import Terms, archive_terms
from shunter.audit.topic import add_key
from shunter.audit.topic_export import Take, TextKind
from shunter.audit.verifier import Verifier
from shunter.console import UserError
from shunter.logs.reading import Kind, TrailRow


def verify_archive(
    archive: Archive,
    *,
    keyring: Keyring | None = None,
    witnessed: Witnessed | None = None,
    terms: Terms | None = None,
    fresh_max: int = 0,
    tell: Callable[[int], object] = lambda _count: None,
) -> Findings:
    """Verify all that an archive holds; see ``verify_topic``.

    Each column is made again of its raw record and compared. What an archive says of itself, beside
    its records, is not believed: each record must have its root, and each root its records.

    Args:
        archive: to read.
        keyring: keys to begin with; those archived are added.
        witnessed: heads that the auditor knows from before, and their sources.
        terms: what may be gone; nothing, if None.
        fresh_max: so many records may lack their roots, as where the archiver is at work.
        tell: receives the number of records after each file.

    Raises:
        ArchiveError: a file can't be read.
    """
    keyring = keyring or Keyring()
    verifier = Verifier(keyring, witnessed, (), terms or archive_terms(time.time()))
    findings = verifier.findings
    # Evidence last, since an archiver writes it first.
    for file in _files(archive, "keys", findings):
        for row, _ in _checked(archive, file, findings):
            add_key(keyring, row.value, row.where, key=row.key or b"")
    for file in _files(archive, "roots", findings):
        for row, _ in _checked(archive, file, findings):
            key = row.key or b""
            verifier.add_root(row.value, row.where, row.at, key=key, partition=row.partition)
    verifier.end_of_roots()
    starts: dict[int, int] = {}
    for file in _files(archive, "evidence", findings):
        starts.setdefault(file.partition, file.first_offset)
        for row, step in _checked(archive, file, findings):
            is_fresh = findings.fresh < fresh_max
            given = (row.partition, row.where, row.key, row.value)
            verifier.add(*given, is_fresh=is_fresh, step=step)
        tell(findings.records)
    findings.checked.append("each column of the archive against its raw record")
    findings.unchecked += [
        (
            "offsets, partitions and timestamp_ms of the archive: Kafka gave them, nobody signed"
            " them (the column `at` is signed)"
        ),
        "results: an archive has none",
    ]
    return verifier.finish(starts)


def read_archive(archive: Archive, kind: Kind) -> Iterator[TrailRow]:
    """Yield every record of a kind, partition by partition in the order of offsets.

    Raises:
        ArchiveError: a file can't be read.
    """
    for file in archive.files(kind):
        table = archive.read(file, ["timestamp_ms", "key", "value", "raw"])
        for start in range(0, table.num_rows, BATCH_ROWS):
            yield from rows_of(file, table.slice(start, BATCH_ROWS))


def _files(archive: Archive, kind: Kind, findings: Findings) -> list[ArchiveFile]:
    """Return the files of a kind, and tell of what is none of them, and queries read."""
    files, strays = archive.listed(kind)
    for path in strays:
        findings.add("stray_file", path, "no archiver names a file so, and queries would read it")
    return files


def _checked(
    archive: Archive, file: ArchiveFile, findings: Findings
) -> Iterator[tuple[TrailRow, ArchivedStep | None]]:
    """Yield the records of a file, whose columns are checked on the way."""
    table = archive.read(file)
    check_file(file, table, findings)
    yield from checked_rows(file, table, findings)


class ArchiveTrail:
    """The trail in an archive."""

    def __init__(self, url: str) -> None:
        with _told():
            self._archive = Archive(url)
            if not self._archive.files("evidence"):
                raise UserError(f"{url}: no evidence is archived there")

    def verify(self, asked: AuditOptions, tell: Callable[[int], object]) -> Findings:
        """Verify the files."""
        terms = archive_terms(
            time.time(), asked.retention_days, accept_beginnings=asked.accept_beginnings
        )
        with _told():
            return verify_archive(
                self._archive,
                keyring=asked.keyring,
                witnessed=asked.witnessed,
                terms=terms,
                fresh_max=asked.fresh_max,
                tell=tell,
            )

    def each(self, kind: Kind, take: Callable[[TrailRow], object]) -> None:
        """Pass on the files' records."""
        with _told():
            for row in read_archive(self._archive, kind):
                take(row)

    def export(self, take: Mapping[Kind | TextKind, Take]) -> None:
        """Pass the files on; evidence last, since an archiver writes it first."""
        kinds: tuple[Kind, ...] = ("keys", "roots", "evidence")
        for kind in kinds:
            self.each(kind, take[kind])

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
    if archive.is_web:
        return _scanned(archive, request_id)
    addresses = archive.addresses("evidence")
    if not addresses:
        return []
    engine = duckdb.connect()
    if archive.is_remote:
        engine.register_filesystem(archive.fs)
    query = (
        'SELECT partition, "offset", key, value, raw, timestamp_ms FROM read_parquet(?)'
        ' WHERE request_id = ? ORDER BY partition, "offset"'
    )
    try:
        found = engine.execute(query, [addresses, request_id]).fetchall()
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


def _scanned(archive: Archive, request_id: str) -> list[TrailRow]:
    """Return the evidence of a request from all files: DuckDB asks when each was changed last."""
    found = []
    for file in archive.files("evidence"):
        table = archive.read(file, ["request_id", "timestamp_ms", "key", "value", "raw"])
        found += rows_of(file, table.filter(pc.field("request_id") == request_id))
    return found


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ArchiveError, OSError) as error:
        raise UserError(str(error)) from error
