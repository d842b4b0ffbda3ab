"""Auditors' work on a trail: proofs, replays, reports, stories that contradict themselves."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_cases import Archived, Office, Trail, make_trail
from hold_cases import look
from notary_cases import router
from stream_cases import START, Yard, drain, make_signer
from typer.testing import CliRunner

from policies import Options, Policy
from shunter.archive import Archive, ArchiveError, Archiver, parse_holds
from shunter.archive.sink import Keeping
from shunter.audit.archive_trail import find_request, read_archive, verify_archive
from shunter.audit.files import write_keys
from shunter.audit.keyring import Keyring
from shunter.audit.proofs import ProofError, check_proof, make_proof
from shunter.audit.replay import decisions_on, replay_steps
from shunter.audit.report import AuditReport, Group, as_csv, as_html
from shunter.audit.terms import archive_terms
from shunter.audit.topic import add_key
from shunter.cli import app
from shunter.console import UserError
from shunter.logs.reading import TrailRow, row_of
from streams.engine.log import Outgoing
from streams.engine.stage import Effect
from topics import Batch, Envelope, Evidence, KeyEntry, Placement, Profile, Source, Usage, encode
from topics.signing.keys import load_signing_key
from topics.wire.canonical_json import canonical


def of(yard: Yard) -> Callable[[str | None, str | None], tuple[Options, Policy]]:
    """What finds fleet and policy by the versions that evidence names."""
    return lambda _fleet, _policy: (yard.options, yard.policy)


def rows(trail: Trail, request_id: str) -> list[TrailRow]:
    return [row_of(r) for r in trail.evidence if r.key == request_id.encode()]


def keyring_of(trail: Trail) -> Keyring:
    keyring = Keyring()
    for record in trail.keys:
        add_key(keyring, record.value, "keys")
    return keyring


class TestProofs:
    async def proof(self) -> tuple[Trail, Any]:
        trail = await make_trail()
        roots = [row_of(record) for record in trail.roots]
        made = make_proof("r3", rows(trail, "r3"), roots, keyring_of(trail))
        return trail, json.loads(json.dumps(made))

    async def test_a_proof_needs_nothing_but_itself_and_the_key(self) -> None:
        trail, document = await self.proof()
        (line,) = check_proof(document, keyring_of(trail))
        assert line.startswith("placed, signed by router/a with key")
        assert check_proof(document, None) == [line]

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda d: d["proofs"][0]["record"].update(tenant="x"), "not the one that was signed"),
            (lambda d: d["proofs"][0].update(index=0), "not the one that was signed"),
            (lambda d: d["proofs"][0].update(index=9), "leaf 9 of a tree with 2"),
            (lambda d: d["proofs"][0]["path"].clear(), "the path is too short"),
            (lambda d: d["proofs"][0]["root"]["statement"].update(at=START + 9), "signature"),
            (lambda d: d["proofs"][0]["root"]["statement"].update(key="00"), "key 00 is not among"),
            (lambda d: d.update(request_id="r4"), "the record is of 'r3', not of 'r4'"),
            (lambda d: d["keys"].clear(), "is not among the published keys"),
            (lambda d: d.update(keys=[{"x": 1}]), r"keys\[0\]"),
            (lambda d: d.update(keys=True), "keys is no list"),
            (lambda d: d.update(introductions=5), "introductions is no list"),
            (lambda d: d["proofs"].clear(), "it has no proofs"),
            (lambda d: d["proofs"][0].pop("root"), "'root'"),
            (lambda d: d.update(format="other"), "no proof of the format"),
        ],
    )
    async def test_one_that_was_changed_proves_nothing(self, change: Any, told: str) -> None:
        _, document = await self.proof()
        change(document)
        with pytest.raises(ProofError, match=told):
            check_proof(document, None)

    async def test_of_an_altered_record_there_is_no_proof(self) -> None:
        trail, _ = await self.proof()
        altered = [row._replace(value=b"{}") for row in rows(trail, "r3")]
        with pytest.raises(ProofError, match="is under no root"):
            make_proof("r3", altered, [row_of(r) for r in trail.roots], keyring_of(trail))


class TestReplay:
    async def steps(self, **fields: Any) -> tuple[Yard, list[Evidence]]:
        yard = Yard()
        yard.publish(id="a", **fields)
        await drain(await yard.run(router(yard)))
        return yard, yard.evidence()

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"task": "summarization"},
            {"session": "s"},
            {"constraints": {"regions": ["mars"]}},
            {"deadline": START - 1},
        ],
    )
    async def test_a_decision_comes_out_the_same(self, fields: dict[str, Any]) -> None:
        yard, steps = await self.steps(**fields)
        (found,) = replay_steps(steps, of(yard))
        assert found.differences == ()

    async def test_work_sent_before_counts_as_it_did_then(self) -> None:
        yard = Yard()
        for n in range(12):
            yard.publish(id=f"r{n}")
        await drain(await yard.run(router(yard)))
        steps = yard.evidence()
        assert len({step.promised for step in steps}) > 1
        for step in steps:
            (found,) = replay_steps([step], of(yard))
            assert found.differences == ()

    async def released(self) -> tuple[Yard, list[Evidence]]:
        """Six of which four fill a batch, and two go when their window ends."""
        yard = Yard()
        for n in range(6):
            yard.publish(id=f"r{n}", task="summarization", session="s")
        await drain(await yard.run(router(yard)))
        yard.clock.at += 60
        await look(yard)
        return yard, yard.evidence()

    async def test_a_release_comes_out_the_same_and_each_member_names_it(self) -> None:
        yard, steps = await self.released()
        released = [step for step in steps if step.step == "released"]
        assert {step.profile.session for step in released if step.profile} == {None}
        # Another try of a first member, in another batch, has no say in this one.
        elsewhere = [replace(s, batch=Batch("9-9", 0, 1)) for s in released if s.profile]
        assert sorted(step.batch.size for step in released if step.batch) == [2, 2, 4, 4, 4, 4]
        for step in released:
            told = steps if step.decided_with is None else [*steps, *elsewhere]
            found = decisions_on(
                step.request_id, lambda name, told=told: [s for s in told if s.request_id == name]
            )
            held, again = replay_steps(found, of(yard))
            assert (held.step, again.step) == ("held", "released")
            assert (held.differences, again.differences) == ((), ())
            assert again.request_id == (step.decided_with or step.request_id)

    async def test_a_false_release_is_found_out(self) -> None:
        yard, steps = await self.released()
        step = next(s for s in steps if s.inputs is not None and s.batch and s.batch.size == 2)
        assert step.batch is not None
        assert step.hold is not None
        for false, told in (
            (replace(step, reason="full"), "reason: recorded full, found window"),
            (replace(step, batch=replace(step.batch, size=3)), "members: recorded 3, found 2"),
            (replace(step, at=step.at - 25), "found that it should have waited"),
            (replace(step, candidates=step.candidates[1:]), "candidates: recorded"),
        ):
            (found,) = replay_steps([false], of(yard))
            assert told in "; ".join(found.differences)

    async def test_a_false_record_is_found_out(self) -> None:
        yard, (step,) = await self.steps()
        dear = replace(step.candidates[0], cost_usd=1.0)
        false = replace(step, reason="best_chance", candidates=(dear, *step.candidates[1:]))
        (found,) = replay_steps([false], of(yard))
        reason, candidates = found.differences
        assert reason.startswith("reason: recorded best_chance, found ")
        assert candidates.startswith("candidates: number 1: recorded")

    async def test_steps_that_are_no_decisions_are_told(self) -> None:
        yard, (step,) = await self.steps()
        with pytest.raises(UserError, match="no step of this request is a decision"):
            replay_steps([replace(step, inputs=None)], of(yard))


def executed(request_id: str, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "step": "executed",
        "at": START,
        "writer": "worker/p/a",
        "source": Source("yard.pool.p.direct", 0, 1),
        "tenant": "<acme>",
        "task": "chat",
        "placement": Placement("p", "d", "v", "fp8", "eu-west", "direct"),
        "promised": Envelope(0.002, 0.5, 2.0),
        "got": Envelope(0.001, 0.4, 1.5),
        "usage": Usage(10, 20),
    }
    return Evidence(**(fields | changes))


class TestReport:
    def report(self) -> AuditReport:
        report = AuditReport(START - 10, START + 10)
        for step in (
            executed("a"),
            executed("b", got=Envelope(0.003, 0.4, 2.5)),
            executed("c", at=START + 10),
            executed("d", step="rejected", placement=None, promised=None, got=None, usage=None),
            executed("e", step="fell_back", got=None, usage=None),
            executed("f", step="placed", got=None, usage=None),
        ):
            report.add(canonical(step))
        report.add(b"no evidence")
        return report

    def test_counts_money_and_promises(self) -> None:
        report = self.report()
        counts = report.groups[Group("<acme>", "chat", "p", "eu-west", "fp8")]
        assert (counts.requests, counts.completed, counts.fallbacks) == (2, 2, 1)
        assert (counts.in_envelope, counts.late, counts.dear) == (1, 1, 1)
        assert (counts.input_tokens, counts.output_tokens) == (20, 40)
        assert counts.cost_usd == pytest.approx(0.004)
        assert report.groups[Group("<acme>", "chat", "", "", "")].rejected == 1
        assert (report.total().requests, report.unreadable) == (3, 1)

    def test_csv_and_page(self) -> None:
        report = self.report()
        heading, first, second = as_csv(report).splitlines()
        assert heading.startswith("tenant,task,pool,region,precision,requests,completed")
        assert first.startswith("<acme>,chat,,,,1,0")
        assert second.startswith("<acme>,chat,p,eu-west,fp8,2,2")
        page = as_html(report)
        assert "<td>&lt;acme&gt;</td>" in page
        assert "<acme>" not in page
        assert "2027-01-15T07:59:50Z to 2027-01-15T08:00:10Z" in page
        assert "http" not in page


async def signed(*steps: Evidence) -> Trail:
    """A trail of these steps, signed as they are by somebody who lies."""
    office = Office()
    yard, catalogue = office.yard, office.yard.catalogue
    signer = make_signer(catalogue, yard.clock)
    entry = KeyEntry(published=signer.publish())
    name = (entry.name or "").encode()
    yard.cluster.publish(Outgoing(catalogue.evidence_keys, name, encode(entry)))
    out = [Outgoing(catalogue.evidence, s.request_id.encode(), canonical(s)) for s in steps]
    sealed, _ = signer.seal("chain", None, [Effect(None, out)])
    for record in [*out, *sealed]:
        yard.cluster.publish(record)
    return office.trail()


def placed(request_id: str, profile: Profile, **changes: Any) -> Evidence:
    return executed(
        request_id,
        **{"step": "placed", "source": Source("yard.requests", 0, 1), "profile": profile} | changes,
    )


class TestStories:
    async def profile(self, **fields: Any) -> Profile:
        yard = Yard()
        yard.publish(id="a", **fields)
        await drain(await yard.run(router(yard)))
        profile = yard.evidence()[0].profile
        assert profile is not None
        return profile

    async def test_one_that_ends_twice_or_without_having_begun_is_told(self) -> None:
        profile = await self.profile()
        trail = await signed(placed("a", profile), executed("a"), executed("a", at=START + 1))
        findings = await trail.verified()
        assert [(p.kind, p.message) for p in findings.problems] == [
            ("ended_twice", "accepted once, ended twice")
        ]
        findings = await (await signed(executed("b"))).verified()
        assert [p.message for p in findings.problems] == ["accepted never, ended once"]

    @pytest.mark.parametrize(
        ("constraints", "told"),
        [
            ({"regions": ["us-east"]}, "region eu-west is not among us-east"),
            ({"precisions": ["int8"]}, "precision fp8 is not among int8"),
            ({"pools": ["q"]}, "pool p is not among q"),
            ({"exclude_pools": ["p"]}, "pool p was excluded"),
            ({"max_cost_usd": 0.001}, "0.002 USD were promised, at most 0.001 allowed"),
        ],
    )
    async def test_a_broken_constraint_is_told(self, constraints: Any, told: str) -> None:
        profile = await self.profile(constraints=constraints)
        findings = await (await signed(placed("a", profile), executed("a"))).verified()
        assert set(findings.counts) == {"constraint"}
        assert findings.problems[0].message == f"a placed: {told}"
        assert findings.counts["constraint"] == 2


class TestArchive:
    async def archived(self, tmp_path: Path) -> Archived:
        archived = Archived(tmp_path, await make_trail())
        await archived.fill()
        return archived

    async def test_each_record_is_there_once_whatever_is_archived_again(
        self, tmp_path: Path
    ) -> None:
        archived = await self.archived(tmp_path)
        first = sorted(tmp_path.rglob("*.parquet"))
        await archived.fill()
        assert sorted(tmp_path.rglob("*.parquet")) == first
        assert len(list(read_archive(archived.archive, "evidence"))) == 16

    async def test_one_that_dies_anywhere_is_gone_on_with_and_verifies_meanwhile(
        self, tmp_path: Path
    ) -> None:
        class DiesError(Exception):
            pass

        for survived in range(0, 12, 3):
            archived = Archived(tmp_path / str(survived), await make_trail())
            write, left = archived.archive.write, [survived]

            def dying(*arguments: Any, left: list[int] = left, write: Any = write) -> Any:
                if not left[0]:
                    raise DiesError
                left[0] -= 1
                return write(*arguments)

            archived.archive.write = dying  # type: ignore[method-assign, assignment]
            try:
                await archived.fill()
            except DiesError:
                # No word of what is covered: what has no root yet is told of, and nothing else.
                findings = verify_archive(Archive(archived.archive.url))
                assert set(findings.counts) <= {"altered", "unknown_key"}
            archived.archive = Archive(archived.archive.url)
            await archived.fill()
            assert verify_archive(archived.archive).is_good
            offsets = [(r.partition, r.offset) for r in read_archive(archived.archive, "evidence")]
            assert len(offsets) == len(set(offsets)) == 16

    async def test_two_archivers_are_found_out(self, tmp_path: Path) -> None:
        archived = await self.archived(tmp_path)
        file = archived.archive.files("evidence")[0]
        path = Path(file.path)
        path.rename(path.with_name(path.name.replace(f"{file.next_offset:020d}", f"{9:020d}")))
        path.with_name(path.name.replace(f"{file.first_offset:020d}", f"{1:020d}")).write_bytes(b"")
        with pytest.raises(ArchiveError, match="hold the same offsets"):
            archived.archive.files("evidence")

    async def test_a_request_is_found_by_any_id(self, tmp_path: Path) -> None:
        archived = await self.archived(tmp_path)
        (row,) = find_request(archived.archive, "r3")
        assert json.loads(row.value or b"")["request_id"] == "r3"
        assert find_request(archived.archive, "' OR 1=1 --") == []

    async def test_a_request_is_sought_in_no_file_that_no_archiver_has_named(
        self, tmp_path: Path
    ) -> None:
        archived = await self.archived(tmp_path)
        for file in archived.archive.files("evidence"):
            path = Path(file.path)
            path.with_suffix(".more.parquet").write_bytes(path.read_bytes())
        assert len(find_request(archived.archive, "r3")) == 1

    async def test_an_object_store_will_do(self) -> None:
        archived = Archived(Path("unused"), await make_trail())
        archived.archive = Archive("memory://evidence-of-a-test")
        await archived.fill()
        assert verify_archive(archived.archive).is_good
        (row,) = find_request(archived.archive, "r3")
        assert json.loads(row.value or b"")["request_id"] == "r3"

    async def test_a_broken_file_is_told(self, tmp_path: Path) -> None:
        archived = await self.archived(tmp_path)
        Path(archived.archive.files("evidence")[0].path).write_bytes(b"PAR1 no more PAR1")
        with pytest.raises(ArchiveError, match=r"\.parquet"):
            verify_archive(archived.archive)

    async def test_old_days_go_but_for_holds_and_what_is_left_verifies(
        self, tmp_path: Path
    ) -> None:
        archived = await self.archived(tmp_path)
        clock = Yard().clock
        clock.at = START + 40 * 86400
        archiver = Archiver(archived._log, archived.catalogue, archived.archive, clock, rows_max=3)
        held = Keeping(30, parse_holds("2027-01-01..2027-01-31"))
        assert archiver.clean(Keeping()) == archiver.clean(held) == []
        gone = archiver.clean(Keeping(30))
        assert {file.kind for file in gone} <= {"evidence", "roots"}
        assert gone
        assert await archiver.round() == 0
        findings = verify_archive(archived.archive, terms=archive_terms(clock.at, 30))
        assert findings.is_good, findings.problems
        assert findings.notes
        # Of an archive that is said to keep all, or for longer, these are missing.
        for days in (None, 50):
            findings = verify_archive(archived.archive, terms=archive_terms(clock.at, days))
            assert findings.counts["missing"]

    @pytest.mark.parametrize("text", ["2027", "2027-01-01..", "2027-02-30..2027-03-01"])
    def test_a_hold_that_is_none_stops_everything(self, text: str) -> None:
        with pytest.raises(ArchiveError, match=r"is not like 2026-01-01\.\.2026-03-31"):
            parse_holds(text)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


class TestCommands:
    def test_a_key_is_made_replaced_and_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        first = invoke("evidence", "keygen", path)
        assert first.exit_code == 0
        assert load_signing_key(path).id in first.output
        again = invoke("evidence", "keygen", path)
        assert "--replace takes its place" in str(again.exception)
        second = invoke("evidence", "keygen", path, "--replace")
        assert second.exit_code == 0
        key = load_signing_key(path)
        assert key.id not in first.output
        assert key.publish("router/a", START).endorser in first.output

    async def test_a_proof_is_checked_without_a_broker(self, tmp_path: Path) -> None:
        trail = await make_trail()
        roots = [row_of(record) for record in trail.roots]
        keyring = keyring_of(trail)
        proof = tmp_path / "proof.json"
        proof.write_text(json.dumps(make_proof("r3", rows(trail, "r3"), roots, keyring)))
        keys = tmp_path / "keys.json"
        assert write_keys(keys, keyring) == 2
        told = await asyncio.to_thread(invoke, "audit", "verify-proof", proof, "--keys", keys)
        assert told.exit_code == 0, told.exception
        proof.write_text("[]")
        told = await asyncio.to_thread(invoke, "audit", "verify-proof", proof)
        assert "proves nothing: no proof of the format shunter-proof/1" in str(told.exception)

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("audit", "verify", "--archive", "/nowhere"), "no evidence is archived there"),
            (("audit", "verify", "--archive", "x://y"), "x://y"),
            (("audit", "verify", "--keys", "/nowhere.json"), "/nowhere.json: No such file"),
            (("audit", "report", "--from", "monday"), "'monday' is no date or time of ISO 8601"),
            (
                (
                    "evidence",
                    "archive",
                ),
                "name the archive",
            ),
        ],
    )
    def test_what_makes_no_sense_is_told(self, words: tuple[str, ...], told: str) -> None:
        outcome = invoke(*words)
        assert outcome.exit_code == 1
        assert told in str(outcome.exception)
