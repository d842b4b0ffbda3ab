"""An audit of what is still being written: exports, records without a root yet, and the time."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from adversary import TRUST, introduced_trail
from archive_adversary import ArchiveForger
from audit_cases import Office, Trail
from memory_log import MemoryCluster, MemoryLog
from second_verifier import FORMATS, RESULTS, SECOND, export, second_findings
from stream_cases import START, make_key
from typer.testing import CliRunner

from shunter.archive import Archive
from shunter.audit.archive_trail import verify_archive
from shunter.audit.keyring import Keyring
from shunter.audit.terms import GRACE_S, Terms
from shunter.audit.topic_export import TextKind, export_topics
from shunter.cli import app
from shunter.commands.audit_report import write_lines
from shunter.logs.reading import Kind
from streams.engine.log import Partition
from topics import Catalogue, Heads, HeadsStatement, KeyEntry, encode
from topics.records.evidence import ENDS
from topics.signing.signed_root import sign

KINDS: tuple[Kind | TextKind, ...] = ("evidence", "roots", "keys", "results", "salts")


class Interrupted(MemoryLog):
    """Lets something happen whenever a topic is about to be read."""

    def __init__(
        self, cluster: MemoryCluster, topic: str, happen: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(cluster)
        self._topic, self._happen = topic, happen

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        if any(partition.topic == self._topic for partition in partitions):
            await self._happen()
        return await super().bounds(partitions)


@pytest.mark.parametrize("topic", ["evidence", "evidence_roots", "evidence_keys", "results"])
async def test_an_export_of_a_running_system_is_of_one_moment(topic: str, tmp_path: Path) -> None:
    office, started = Office(), [9]
    await office.run(9)
    catalogue = office.yard.catalogue

    async def happen() -> None:
        """A process starts, signs, and tells of its heads."""
        number = started[-1]
        await office.run(6, start=number, key=make_key(number), writer=f"router/{number}")
        office.tell_heads()
        started.append(number + 6)

    log = Interrupted(office.yard.cluster, getattr(catalogue, topic), happen)
    await write_export(log, catalogue, tmp_path)
    assert len(started) > 1
    assert second_findings(tmp_path) == []
    evidence, results, salts = (lines(tmp_path, kind) for kind in ("evidence", "results", "salts"))
    assert len([row for row in evidence if row["value"]["step"] in ENDS]) >= 3
    found: list[str] = []
    keys = RESULTS.keys_of(salts, b"shunter")
    RESULTS.check_results(results, evidence, keys, 0.0, lambda *told: found.append(str(told)))
    assert found == []


async def write_export(log: MemoryLog, catalogue: Catalogue, to: Path) -> None:
    with ExitStack() as files:
        opened = {kind: files.enter_context((to / f"{kind}.jsonl").open("wb")) for kind in KINDS}
        await export_topics(log, catalogue, {k: write_lines(file) for k, file in opened.items()})


def lines(directory: Path, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = SECOND.Trail.placed(FORMATS.export_lines(directory, kind), kind)
    return found


async def test_records_without_a_root_pass_by_the_auditors_word_and_are_named(
    tmp_path: Path,
) -> None:
    trail = await introduced_trail()
    # The archiver has written evidence of the newest transaction, and is about to write its root.
    forger = await ArchiveForger.make(tmp_path, trail)
    newest = max((tmp_path / "roots").rglob("*.parquet"), key=lambda path: path.name)
    newest.unlink()
    first = verify(forger.whole, 0)
    lost = first.counts["altered"]
    assert lost > 0
    assert "altered" in second_findings(tmp_path, trust=[TRUST], is_archive=True)
    assert verify(forger.whole, lost - 1).counts["altered"] == 1
    found = verify(forger.whole, lost)
    assert "altered" not in found.counts
    assert found.fresh == lost
    told = next(line for line in found.unchecked if "--fresh" in line)
    assert all(where in told for where in found.fresh_at)
    assert found.fresh_at[0].startswith("evidence/")
    second = SECOND.Trail(FORMATS.archive_reader(tmp_path, print), [TRUST], fresh=lost)
    second.check()
    assert "altered" not in second.problems
    assert second.fresh_at == found.fresh_at


def verify(directory: Path, fresh_max: int) -> Any:
    keyring = Keyring(installations=frozenset({TRUST}))
    terms = Terms(accept_beginnings=True)
    return verify_archive(
        Archive(str(directory)), keyring=keyring, terms=terms, fresh_max=fresh_max
    )


async def test_a_heartbeat_tells_that_a_request_is_long_due(tmp_path: Path) -> None:
    """Nothing was signed since it was accepted, but whoever signs lives on."""
    trail = await introduced_trail()
    open_ids = await unended(trail)
    assert open_ids == set()
    (tmp_path / "now").mkdir()
    export(trail, tmp_path / "now")
    read = functools.partial(FORMATS.export_lines, tmp_path / "now")
    second = SECOND.Trail(read, [TRUST], now=START + 100_000 + GRACE_S)
    second.check()
    assert "unended" in second.problems
    heartbeat(trail, START + 100_000 + GRACE_S)
    assert await unended(trail, tmp_path / "topics") != set()
    await ArchiveForger.make(tmp_path / "archive", trail)
    assert verify(tmp_path / "archive", 0).counts["unended"] > 0
    assert "unended" in second_findings(tmp_path / "archive", trust=[TRUST], is_archive=True)


async def unended(trail: Trail, directory: Path | None = None) -> set[str]:
    """The requests that both verifiers find without an end, by no clock but the trail's."""
    keyring = Keyring(installations=frozenset({TRUST}))
    found = await trail.verified(keyring=keyring, terms=Terms())
    first = {problem.where for problem in found.problems if problem.kind == "unended"}
    if directory is not None:
        directory.mkdir()
        export(trail, directory)
        kinds = second_findings(directory, trust=[TRUST])
        assert kinds.count("unended") == len(first)
    return first


def heartbeat(trail: Trail, at: float) -> None:
    """A process tells of its heads, which are what they were."""
    key = make_key(2)
    statement = HeadsStatement("router/a", key.id, at, {})
    heads = Heads(statement, sign(key.private, "heads", statement))
    name = f"heads/{key.id}".encode()
    trail.keys.append(trail.keys[0]._replace(key=name, value=encode(KeyEntry(heads=heads))))


async def test_an_archive_is_read_by_no_file_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's threads would hold it when the process ends, and abort it."""
    archive = (await ArchiveForger.make(tmp_path, await introduced_trail())).whole
    opened = Archive(str(archive))
    monkeypatch.setattr(opened.fs, "open", None)
    assert verify_archive(opened).is_good


@pytest.mark.kafka
async def test_what_the_topic_keeps_for_longer_than_declared_may_not_be_gone(
    kafka: str, prefix: str
) -> None:
    (await introduced_trail()).publish(kafka, prefix)
    env = {"SHUNTER_BOOTSTRAP_SERVERS": kafka, "SHUNTER_TOPIC_PREFIX": prefix}
    words = ["audit", "verify", "--no-results", "--retention-days", "1", "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, app, words, env=env)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["good"]) == (0, True), told
    longer = "is set to keep records for ever, longer than the 1 that are declared"
    assert any(longer in line for line in told["checked"])
