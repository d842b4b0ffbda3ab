"""Trust of an auditor: introductions, revocations, kept heads, and results' digests."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from adversary import INSTALLATION, TRUST
from audit_cases import Office, Trail, make_trail
from memory_log import MemoryLog
from second_verifier import export, second_findings
from stream_cases import START, make_key
from tampers import delete_tail
from typer.testing import CliRunner

from shunter.audit.findings import TAIL_UNCHECKED, Findings
from shunter.audit.keyring import Keyring
from shunter.audit.results import Results
from shunter.audit.terms import Terms
from shunter.audit.topic import verify_topic
from shunter.cli import app
from streams.engine.log import Outgoing, Partition, Record
from streams.evidence.projection import decode_step
from topics import Evidence, KeyEntry, Response, Result, Revocation, Source, Timing, encode
from topics.records.evidence import TextDigest
from topics.signing.introductions import introduce, revoke
from topics.signing.keys import SigningKey, load_signing_key
from topics.signing.salts import text_digest

FIRST, SECOND, HOSTS, SPARE = make_key(1), make_key(2), make_key(93), make_key(94)
WRITER = "router/a"

Entries = list[KeyEntry]


def trusting() -> Keyring:
    return Keyring(installations=frozenset({TRUST}))


def introduced(
    key: SigningKey,
    writer: str = WRITER,
    *,
    by: SigningKey = INSTALLATION,
    since: float = 0.0,
    until: float | None = None,
    introduces: bool = False,
) -> KeyEntry:
    made = introduce(by, key.id, writer, since, until, introduces=introduces)
    return KeyEntry(introduction=made)


def of_both(**options: Any) -> Entries:
    return [introduced(FIRST, **options), introduced(SECOND, **options)]


def line(*keys: SigningKey) -> Entries:
    """Each key introduces the next, and the last one those of the writer."""
    pairs = zip((INSTALLATION, *keys), keys, strict=False)
    made = (introduced(key, "*", by=by, introduces=True) for by, key in pairs)
    return [*made, *of_both(by=keys[-1])]


def revoked(key: SigningKey, by: SigningKey, at: float = START) -> KeyEntry:
    return KeyEntry(revocation=revoke(by, key.id, at, "a test"))


GOOD: dict[str, Entries] = {
    "by name": of_both(),
    "by the beginning of names": of_both(writer="router/*"),
    "for the time in which they sign": of_both(since=START - 1, until=START + 9),
    "by a key that may introduce": line(HOSTS),
    "by one that was introduced by such": line(HOSTS, SPARE),
    "by a line as long as may be": line(*(make_key(n) for n in range(100, 104))),
    "twice, once too late": [*of_both(since=START + 99), *of_both()],
    "and a stranger has revoked one": [*of_both(), revoked(FIRST, SPARE)],
    "and one is revoked from later on": [*of_both(), revoked(FIRST, INSTALLATION, START + 99)],
    "and nobody has signed a revocation": [
        *of_both(),
        KeyEntry(revocation=Revocation(FIRST.id, START, "a test")),
    ],
}
BAD: dict[str, tuple[Entries, str]] = {
    "not at all": ([], "unknown_key"),
    "one of the two": ([introduced(FIRST)], "unknown_key"),
    "as another's": (of_both(writer="router/b"), "unknown_key"),
    "as those of another kind": (of_both(writer="worker/*"), "unknown_key"),
    "by a stranger": (of_both(by=SPARE), "unknown_key"),
    "by a writer's key": ([introduced(HOSTS), *of_both(by=HOSTS)], "unknown_key"),
    "as keys that introduce": (of_both(introduces=True), "unknown_key"),
    "by one for another scope": (
        [introduced(HOSTS, "worker/*", introduces=True), *of_both(by=HOSTS)],
        "unknown_key",
    ),
    "by two that introduce each other": (
        [
            introduced(HOSTS, "*", by=SPARE, introduces=True),
            introduced(SPARE, "*", by=HOSTS, introduces=True),
            *of_both(by=HOSTS),
        ],
        "unknown_key",
    ),
    "by a line that is too long": (line(*(make_key(n) for n in range(100, 105))), "unknown_key"),
    "for an earlier time": (of_both(until=START - 1), "outside_validity"),
    "for a later time": (of_both(since=START + 99), "outside_validity"),
    "by one whose time is over": (
        [introduced(HOSTS, "*", until=START - 1, introduces=True), *of_both(by=HOSTS)],
        "outside_validity",
    ),
    "and revoked by the installation": ([*of_both(), revoked(FIRST, INSTALLATION)], "revoked_key"),
    "and revoked by itself": ([*of_both(), revoked(FIRST, FIRST)], "revoked_key"),
    "by one that is revoked": ([*line(HOSTS), revoked(HOSTS, INSTALLATION)], "revoked_key"),
}


async def published(entries: Entries) -> Trail:
    trail = await make_trail()
    for entry in entries:
        name = (entry.name or "").encode()
        trail.keys.append(trail.keys[0]._replace(key=name, value=encode(entry)))
    return trail


class TestIntroductions:
    """Keys of a trail are introduced so, as both verifiers see it."""

    @pytest.mark.parametrize("entries", GOOD.values(), ids=GOOD.keys())
    async def test_a_line_to_the_installation_key_is_believed(
        self, entries: Entries, tmp_path: Path
    ) -> None:
        trail = await published(entries)
        found = await trail.verified(keyring=trusting())
        assert found.problems == []
        assert f"each signing key is introduced by {TRUST}" in found.checked
        export(trail, tmp_path)
        assert second_findings(tmp_path, trust=[TRUST]) == []

    @pytest.mark.parametrize(("entries", "kind"), BAD.values(), ids=BAD.keys())
    async def test_anything_else_is_not(self, entries: Entries, kind: str, tmp_path: Path) -> None:
        trail = await published(entries)
        found = await trail.verified(keyring=trusting())
        assert kind in found.counts, found.problems
        export(trail, tmp_path)
        # The second one asks whether a line holds, not why it doesn't.
        second = second_findings(tmp_path, trust=[TRUST])
        assert {kind, "unknown_key"} & set(second), second

    async def test_without_trust_a_key_is_its_own_word(self) -> None:
        found = await (await published([])).verified()
        assert found.is_good
        assert any("(--trust)" in told for told in found.unchecked)


class TestTail:
    """What is cut off where nobody kept a head shows nowhere, and that is said."""

    async def cut(self) -> tuple[Trail, Trail]:
        whole = await published(of_both())
        trail = await published(of_both())
        delete_tail(trail)
        trail.progress = []
        trail.keys = [r for r in trail.keys if not (r.key or b"").startswith(b"heads/")]
        return whole, trail

    async def test_it_is_a_boundary_without_heads(self, tmp_path: Path) -> None:
        _, trail = await self.cut()
        found = await trail.verified(keyring=trusting())
        assert found.problems == []
        assert TAIL_UNCHECKED in found.unchecked
        export(trail, tmp_path)
        assert second_findings(tmp_path, trust=[TRUST]) == []

    async def test_it_shows_by_a_head_that_was_kept(self, tmp_path: Path) -> None:
        whole, trail = await self.cut()
        heads = (await whole.verified(keyring=trusting())).heads
        kept = {chain: (head, "last month") for chain, head in heads.items()}
        found = await trail.verified(keyring=trusting(), witnessed=kept)
        assert "truncated" in found.counts
        assert TAIL_UNCHECKED not in found.unchecked
        export(trail, tmp_path)
        told = {chain: asdict(head) for chain, head in heads.items()}
        assert "truncated" in second_findings(tmp_path, trust=[TRUST], heads=told)


KEYS = {"s1": b"1" * 32, "s2": b"2" * 32}
ANSWER = {"choices": ["yes"]}


class Desk:
    """Results and the evidence of their ends; ``r`` and ``other`` are right, if not changed."""

    def __init__(self) -> None:
        home = Partition("results", 0)
        self._results = Results(KEYS.get, {home: (0, 10)}, since=5.0)
        self.findings = Findings()
        self.ended("r", TextDigest("s1", text_digest(KEYS["s1"], ANSWER) or ""))
        self.ended("other", TextDigest("s2", text_digest(KEYS["s2"], ANSWER) or ""))
        self._record = Record(home, 3, b"", b"", [], 0)

    def ended(
        self, name: str, digest: TextDigest | None, step: Any = "executed", at: float = 1.0
    ) -> None:
        source = Source("t", 0, 0)
        made = Evidence(name, step, at, "w", source, response_digest=digest)
        self._results.ended(decode_step(encode(made)))

    def add(self, value: bytes, key: bytes = b"r", offset: int = 3) -> None:
        record = self._record._replace(key=key, value=value, offset=offset)
        self._results.add(record, f"results/0@{offset}", self.findings)

    def add_result(
        self, body: Any = ANSWER, name: str = "r", key: str | None = None, **others: Any
    ) -> None:
        offset = others.pop("offset", 3)
        response = None if body is None else Response(200, body)
        fields = {"status": "completed", "timing": Timing(1.0), "response": response} | others
        self.add(encode(Result(name, **fields)), (key or name).encode(), offset)

    def finish(self) -> Findings:
        self._results.finish(self.findings)
        return self.findings


class TestResults:
    def found(self, change: Callable[[Desk], object]) -> Findings:
        desk = Desk()
        desk.add_result(name="other")
        change(desk)
        return desk.finish()

    def test_an_answer_is_that_of_its_digest(self) -> None:
        found = self.found(lambda desk: desk.add_result())
        assert found.is_good
        assert any(told.startswith("2 answers") for told in found.checked)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda d: d.add_result({"choices": ["no"]}), "not the one that was signed"),
            (lambda d: d.add_result(None), "has no answer, its evidence has"),
            (lambda d: d.add_result(status="failed"), "failed, has no such end"),
            (lambda d: d.add_result(name="nobody"), "has no such end"),
            (lambda d: d.add_result(key="x"), "stands under the key"),
            (lambda d: d.add(b"{"), "no result"),
            (
                lambda d: (d.ended("bare", None), d.add_result(name="bare")),
                "has an answer, its evidence has none",
            ),
        ],
    )
    def test_any_other_is_false(self, change: Callable[[Desk], object], told: str) -> None:
        found = self.found(change)
        assert dict(found.counts) == {"false_result": 1}
        assert told in found.problems[0].message

    def test_all_of_them_differ_under_a_wrong_secret(self) -> None:
        desk = Desk()
        for name in ("r", "other"):
            desk.add_result("another", name=name)
        found = desk.finish()
        assert dict(found.counts) == {"false_result": 1}
        assert "SHUNTER_EVIDENCE_SECRET" in found.problems[0].message

    def test_one_that_was_deleted_is_missed_while_results_are_kept(self) -> None:
        found = self.found(lambda desk: desk.ended("gone", None, at=6.0))
        assert [p.where for p in found.problems] == ["gone"]
        assert "not there any more" in found.problems[0].message

    def test_one_that_stands_there_twice(self) -> None:
        def twice(desk: Desk) -> None:
            desk.add_result()
            desk.add_result()

        found = self.found(twice)
        assert "more often than the request has ended" in found.problems[0].message

    def test_what_was_forgotten_or_came_during_the_check_is_told(self) -> None:
        desk = Desk()
        desk.ended("old", TextDigest("gone", "00"))
        desk.add_result(name="old")
        desk.add_result(name="late", offset=10)
        found = desk.finish()
        assert found.is_good
        assert "the answers of 1 results: their salts are gone" in found.unchecked
        assert "1 results that came during this check" in found.unchecked

    async def test_they_are_read_of_the_topic(self) -> None:
        """What the stages wrote is good; one result more is not."""
        office = Office()
        await office.run(4)
        cluster, catalogue = office.yard.cluster, office.yard.catalogue
        assert len(cluster.records(catalogue.results)) == 1

        async def check() -> Findings:
            return await verify_topic(
                MemoryLog(cluster), catalogue, terms=Terms(), salts=lambda _: None
            )

        assert (await check()).is_good
        forged = Result("r0", "completed", Timing(1.0), Response(200, ANSWER))
        cluster.publish(Outgoing(catalogue.results, b"r0", encode(forged)))
        assert dict((await check()).counts) == {"false_result": 1}


class TestCommands:
    """What is signed offline, with no broker anywhere."""

    def shunter(self, *words: object, code: int = 0) -> str:
        told = CliRunner().invoke(app, ["evidence", *map(str, words)])
        assert told.exit_code == code, (told.output, told.exception)
        return f"{told.output}{told.exception or ''}"

    def make(self, directory: Path) -> tuple[Path, Path]:
        by, hosts = directory / "installation.pem", directory / "hosts.pem"
        self.shunter("keygen", by, "--installation")
        self.shunter("keygen", hosts)
        return by, hosts

    def test_an_introduction_is_what_its_options_say(self, tmp_path: Path) -> None:
        by, hosts = self.make(tmp_path)
        output = tmp_path / "out.json"
        offline = ("--signed-by", by, "--output", output)
        self.shunter("introduce", hosts, "--may-introduce", "router/*", *offline)
        (entry,) = json.loads(output.read_text())
        said = entry["introduction"]["statement"]
        ids = load_signing_key(by).id, load_signing_key(hosts).id
        assert (said["by"], said["key"]) == ids
        assert (said["writer"], said["introduces"], said["valid_until"]) == ("router/*", True, None)
        self.shunter("introduce", ids[1], "--writer", WRITER, "--valid-days", "1", *offline)
        said = json.loads(output.read_text())[0]["introduction"]["statement"]
        assert (said["writer"], said["introduces"], said["valid_from"]) == (WRITER, False, 0.0)
        assert said["valid_until"] > 1.7e9
        self.shunter("revoke", ids[1], "--reason", "lost", *offline)
        assert json.loads(output.read_text())[0]["revocation"]["by"] == ids[0]

    def test_what_makes_no_sense_is_refused(self, tmp_path: Path) -> None:
        by, hosts = self.make(tmp_path)
        signed = ("--signed-by", by, "--output", tmp_path / "out.json")
        for words, why in (
            ((hosts, *signed), "--writer NAME, or that it --may-introduce"),
            ((hosts, "--writer", "a", "--may-introduce", "b", *signed), "--writer NAME, or"),
            ((by, "--writer", "a", *signed), "can't introduce itself"),
            ((tmp_path / "none.pem", "--writer", "a", *signed), "none.pem"),
        ):
            assert why in self.shunter("introduce", *words, code=1)
        assert "is not replaced in its file" in self.shunter(
            "keygen", by, "--installation", "--replace", code=1
        )
        assert not (tmp_path / "out.json").exists()

    @pytest.mark.parametrize("change", ["signature", "writer", "nothing", "keys"])
    def test_a_file_that_was_changed_is_not_published(self, change: str, tmp_path: Path) -> None:
        by, hosts = self.make(tmp_path)
        output = tmp_path / "out.json"
        self.shunter("introduce", hosts, "--writer", "a", "--signed-by", by, "--output", output)
        entries = json.loads(output.read_text())
        introduction = entries[0]["introduction"]
        if change == "signature":
            introduction["signature"] = introduction["signature"][::-1]
        elif change == "writer":
            introduction["statement"]["writer"] = "b"
        elif change == "nothing":
            entries = []
        else:
            published = FIRST.publish(WRITER, START)
            entries = [{"published": asdict(published)}]
        output.write_text(json.dumps(entries))
        told = self.shunter("publish", output, code=1)
        assert ("signature is wrong" in told) == (change in {"signature", "writer"}), told
        assert ("no introduction and no revocation" in told) == (change in {"nothing", "keys"})


def test_a_revocation_of_another_key_is_another_statement() -> None:
    """A signature of one can't be put under the other."""
    of_first, of_second = (revoke(INSTALLATION, key.id, START, "x") for key in (FIRST, SECOND))
    keyring = trusting()
    keyring.add(KeyEntry(revocation=replace(of_second, signature=of_first.signature)), "here")
    assert keyring.refused == [("here", "the revocation's signature is wrong")]
    assert keyring.revocation(SECOND.id) is None
