"""An archive against a public log, by the commands of an auditor."""

import asyncio
import json
from pathlib import Path

import pytest
from audit_cases import Archived, Trail, make_trail
from memory_log import MemoryLog
from public_log_cases import KEY
from stream_cases import FakeClock
from tampers import delete_tail
from typer.testing import CliRunner

from shunter.cli import app
from shunter.public_log.publisher import PublicLog
from shunter.public_log.store import DirectoryStore
from shunter.public_log.witnesses import Witnesses
from topics.public_log.notes import parse_checkpoint, parse_note
from topics.public_log.policy import parse_policy


class Audited:
    """An archive, the log of its roots, and the policy that names the log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.policy = directory / "policy"
        self.policy.write_text(f"log {KEY.verifier.text}\nquorum none\n")
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        trail = await make_trail()
        self.roots = len(trail.roots)
        self.archived = Archived(self.directory / "archive", trail)
        await self.archived.fill()
        policy = parse_policy(self.policy.read_bytes())
        store = DirectoryStore(self.directory / "log")
        log = MemoryLog(trail.cluster())
        await PublicLog(log, trail.catalogue, store, KEY, Witnesses(policy), FakeClock()).round()

    def run(self, *words: str | Path, code: int = 0) -> str:
        """Run a command of `shunter audit` with the log and the archive."""
        options = ["--log", self.directory / "log", "--policy", self.policy]
        options += ["--archive", self.directory / "archive"]
        told = CliRunner().invoke(app, ["audit", *map(str, [*words, *options])])
        assert told.exit_code == code, (told.output, told.exception)
        return told.output

    def check(self, proof: Path, code: int = 0) -> str:
        """Run `shunter audit verify-proof` with the policy."""
        words = ["audit", "verify-proof", str(proof), "--policy", str(self.policy)]
        told = CliRunner().invoke(app, words)
        assert told.exit_code == code, (told.output, told.exception)
        return f"{told.output} {told.exception}"


@pytest.fixture
def audited(tmp_path: Path) -> Audited:
    return Audited(tmp_path)


def test_trail_and_log_are_held_against_each_other(audited: Audited, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    told = audited.run("verify", "--checkpoint", kept)
    assert f"{audited.roots} roots in the public log of {audited.roots} entries" in told
    assert parse_checkpoint(parse_note(kept.read_bytes()).text).size == audited.roots
    assert audited.run("verify", "--checkpoint", kept)


def test_a_tail_that_nobody_else_knows_of_is_missed(audited: Audited, tmp_path: Path) -> None:
    """Cut everywhere with its keys' heads, a trail is good by itself; the log knows better."""

    def cut(trail: Trail) -> None:
        delete_tail(trail)
        trail.keys = [record for record in trail.keys if b'"heads":{' not in (record.value or b"")]

    audited.archived.tamper(cut)
    kept = tmp_path / "kept"
    found = json.loads(audited.run("verify", "--json", "--checkpoint", kept, code=1))
    assert "unkept" in found["counts"]
    assert not kept.exists()


def test_a_proof_holds_for_who_has_the_policy(audited: Audited, tmp_path: Path) -> None:
    proof = tmp_path / "proof.json"
    audited.run("proof", "r3", "--output", proof)
    assert "of the log log.example.com/yard" in audited.check(proof)
    document = json.loads(proof.read_text())
    proofs = document["log_proofs"]
    for changed in (
        {**document, "log_proofs": proofs[1:]},
        {name: value for name, value in document.items() if name != "log_proofs"},
        {**document, "log_proofs": [each.replace("index ", "index 1") for each in proofs]},
        {**document, "log_proofs": [each.replace("\n9\n", "\n10\n") for each in proofs]},
        {**document, "log_proofs": [None for _ in proofs]},
    ):
        proof.write_text(json.dumps(changed))
        assert "proves nothing" in audited.check(proof, code=1)


def test_what_makes_no_sense_is_told(audited: Audited) -> None:
    runner = CliRunner()
    for words, why in (
        (["verify", "--log", "x"], "--policy names whom to believe"),
        (["verify", "--policy", str(audited.policy)], "name it by --log"),
    ):
        archive = ["--archive", str(audited.directory / "archive")]
        told = runner.invoke(app, ["audit", *words, *archive])
        assert told.exit_code == 1
        assert why in f"{told.output} {told.exception}"
