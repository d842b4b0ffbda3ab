"""The ways in which a trail was once forged unseen, each by hand, against both verifiers."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adversary import TRUST, introduced_trail
from audit_cases import Archived
from second_verifier import export, second_findings
from stream_cases import START
from tampers import CHAIN, index_of, records_under

from shunter.archive import Archive
from shunter.archive.rows import SCHEMAS
from shunter.audit.archive_trail import verify_archive
from shunter.audit.keyring import Keyring
from shunter.audit.terms import archive_terms
from topics import ChainHead
from topics.signing.signed_root import statement_digest

Rows = list[dict[str, Any]]
IN_2096_MS = 3_976_214_400_000


def rewrite(path: Path, change: Callable[[Rows], Rows], to: Path | None = None) -> None:
    rows = change(pq.ParquetFile(path).read().to_pylist())
    path.unlink()
    to = to or path
    to.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMAS["evidence"]), to)


async def archived(directory: Path) -> list[Path]:
    """Return the files of evidence of an archive, in the order of partitions and offsets."""
    await Archived(directory, await introduced_trail()).fill()
    assert found(directory) == (set(), [])
    return sorted((directory / "evidence").rglob("*.parquet"), key=lambda path: path.name)


def found(directory: Path, days: float | None = None) -> tuple[set[str], list[str]]:
    """What each verifier finds, of an archive that is declared to be kept for so many days."""
    keyring = Keyring(installations=frozenset({TRUST}))
    terms = archive_terms(START + 60, days)
    first = verify_archive(Archive(str(directory)), keyring=keyring, terms=terms)
    return set(first.counts), second_findings(directory, trust=[TRUST], is_archive=True)


@pytest.mark.parametrize(
    ("column", "value"),
    [("cost_usd", 0.0), ("tenant", "x"), ("region", "x"), ("pool", "x"), ("request_id", "x")],
)
async def test_a_column_that_is_billed_by(column: str, value: object, tmp_path: Path) -> None:
    path = (await archived(tmp_path))[0]
    rewrite(path, lambda rows: [rows[0] | {column: value}, *rows[1:]])
    first, second = found(tmp_path)
    assert first == set(second) == {"false_column"}


async def test_a_record_more_at_the_end_of_a_partition(tmp_path: Path) -> None:
    path = (await archived(tmp_path))[-1]
    partition, begin, end = path.stem.split("-")

    def append(rows: Rows) -> Rows:
        forged = rows[-1]["value"].replace('"tenant":"', '"tenant":"x')
        return [*rows, rows[-1] | {"offset": rows[-1]["offset"] + 1, "value": forged}]

    rewrite(path, append, path.with_name(f"{partition}-{begin}-{int(end) + 1:020d}.parquet"))
    first, second = found(tmp_path)
    assert "altered" in first
    assert "altered" in second


async def test_half_an_archive_with_a_time_of_2096(tmp_path: Path) -> None:
    files = await archived(tmp_path)
    gone, rest = files[: len(files) // 2], files[len(files) // 2]
    for path in gone:
        path.unlink()
    later = tmp_path / "evidence" / "date=2096-01-01" / "hour=00" / rest.name
    rewrite(rest, lambda rows: [row | {"timestamp_ms": IN_2096_MS} for row in rows], later)
    for days in (None, 30.0):
        first, second = found(tmp_path, days)
        assert "missing" in first
        assert "missing" in second


async def test_six_of_nine_transactions_with_a_head_of_the_first(tmp_path: Path) -> None:
    trail = await introduced_trail()
    first_root = trail.chain_of(CHAIN)[0].statement
    kept = ChainHead(0, statement_digest(first_root), first_root.at)
    for sequence in range(6):
        gone = records_under(trail, sequence)
        trail.evidence = [record for record in trail.evidence if record not in gone]
        del trail.roots[index_of(trail, sequence)]
    keyring = Keyring(installations=frozenset({TRUST}))
    first = await trail.verified(keyring=keyring, witnessed={CHAIN: (kept, "last month")})
    assert "gap" in first.counts
    export(trail, tmp_path)
    assert "gap" in second_findings(tmp_path, trust=[TRUST], heads={CHAIN: asdict(kept)})


@pytest.mark.parametrize(
    ("days", "later_s", "expected"),
    [(None, 60.0, {"gap"}), (30.0, 60.0, {"gap"}), (1.0, 3 * 86_400.0, set())],
)
async def test_what_an_auditor_has_seen_is_not_gone_before_it_is_old(
    days: float | None, later_s: float, expected: set[str], tmp_path: Path
) -> None:
    """A head that leads on to the first root that is kept excuses nothing that is young."""
    trail = await introduced_trail()
    first_root = trail.chain_of(CHAIN)[0].statement
    kept = ChainHead(0, statement_digest(first_root), first_root.at)
    gone = records_under(trail, 0)
    trail.evidence = [record for record in trail.evidence if record not in gone]
    del trail.roots[index_of(trail, 0)]
    keyring = Keyring(installations=frozenset({TRUST}))
    terms = archive_terms(START + later_s, days)
    first = await trail.verified(
        keyring=keyring, witnessed={CHAIN: (kept, "last month")}, terms=terms
    )
    assert set(first.counts) == expected, first.problems
    export(trail, tmp_path)
    heads = {CHAIN: asdict(kept)}
    second = second_findings(tmp_path, trust=[TRUST], heads=heads, since=terms.roots_since)
    assert set(second) == expected
