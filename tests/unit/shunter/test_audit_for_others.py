"""A trail prepared for those who ask: attestations, the page for a regulator, retention."""

import base64
import copy
import html
import json
from pathlib import Path
from typing import Any

import pytest
from attestation_cases import proof_of
from audit_cases import Archived, make_trail
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from stream_cases import START, make_key, make_settings
from typer.testing import CliRunner

from shunter.audit.attestation import attest
from shunter.audit.findings import Findings
from shunter.audit.proofs import check_proof
from shunter.audit.regulator import RegulatorReport, as_page
from shunter.cli import app
from shunter.console import UserError, settings_from
from topics import Catalogue, Evidence, Placement, Settings, Source
from topics import Envelope as Promise
from topics.signing.key_files import write_key_file
from topics.signing.keys import load_signing_key, write_signing_key
from topics.wire.canonical_json import canonical


def public(key: Any) -> SSlibKey:
    found = SSlibKey.from_crypto(key.private.public_key())
    # The library looks for the name that the envelope has, which has none.
    found.keyid = ""
    return found


class TestAttestation:
    """Verified by the libraries that others use, and by nothing of ours."""

    async def attested(self) -> dict[str, Any]:
        document = attest(proof_of(await make_trail()), make_key(7))
        return json.loads(json.dumps(document))

    async def test_the_library_verifies_it_and_its_predicate_is_a_proof(self) -> None:
        document = await self.attested()
        envelope = Envelope.from_dict(copy.deepcopy(document))
        assert envelope.verify([public(make_key(7))], 1)
        assert envelope.payload_type == "application/vnd.in-toto+json"
        statement = json_format.Parse(envelope.payload, statement_pb2.Statement())
        Statement.copy_from_pb(statement).validate()
        (subject,) = statement.subject
        assert subject.name == "r3/placed#0"
        predicate = json.loads(envelope.payload)["predicate"]
        (line,) = check_proof(predicate, None)
        assert line.startswith("placed, signed by router/a with key")

    async def test_another_key_or_another_word_is_refused(self) -> None:
        document = await self.attested()
        with pytest.raises(VerificationError):
            Envelope.from_dict(copy.deepcopy(document)).verify([public(make_key(8))], 1)
        payload = base64.b64decode(document["payload"]).replace(b"r3", b"r4", 1)
        document["payload"] = base64.b64encode(payload).decode()
        with pytest.raises(VerificationError):
            Envelope.from_dict(document).verify([public(make_key(7))], 1)

    async def test_the_command_writes_it_from_an_archive(self, tmp_path: Path) -> None:
        trail = Archived(tmp_path / "archive", await make_trail())
        await trail.fill()
        pem, output = tmp_path / "auditor.pem", tmp_path / "r3.intoto.json"
        write_signing_key(pem, [Ed25519PrivateKey.generate()], START)
        command = ["audit", "attest", "r3", "--key", str(pem), "--output", str(output)]
        done = CliRunner().invoke(app, [*command, "--archive", str(tmp_path / "archive")])
        assert done.exit_code == 0, done.output
        envelope = Envelope.from_dict(json.loads(output.read_bytes()))
        assert envelope.verify([public(load_signing_key(pem))], 1)
        write_key_file(pem, b"no key")
        done = CliRunner().invoke(app, [*command, "--archive", str(tmp_path / "archive")])
        assert done.exit_code == 1


def step(request_id: str, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "step": "executed",
        "at": START,
        "writer": "worker/p/p-0",
        "source": Source("t", 0, 0),
        "tenant": "<acme>",
        "task": "chat",
        "placement": Placement("p", "h100", "v", "fp8", "eu-west", "direct"),
        "promised": Promise(0.002, 0.5, 2.0),
        "got": Promise(0.001, 0.4, 1.5),
    }
    return canonical(Evidence(**(fields | changes)))


NOWHERE = {"placement": None, "promised": None, "got": None}


class TestRegulatorsPage:
    def report(self) -> RegulatorReport:
        report = RegulatorReport(START - 10, START + 10)
        for raw in (
            step("a"),
            step("b", got=Promise(0.003, 0.4, 2.5)),
            step("c", at=START + 10),
            step("d", step="rejected", reason="no_pool", **NOWHERE),
            step("e", step="fell_back", reason="timeout", got=None),
            step("f", step="dead_lettered", tenant=None, reason="not_json", **NOWHERE),
            step("g", step="placed", got=None),
            b"no evidence",
        ):
            report.add(raw)
        return report

    def test_each_tenant_has_its_hardware_and_its_exceptions(self) -> None:
        report = self.report()
        account = report.tenants["<acme>"]
        assert (account.records, account.requests) == (5, 3)
        assert account.served == {("eu-west", "p", "h100", "fp8"): 2}
        assert account.exceptions == {
            ("rejected", "no_pool"): 1,
            ("fell back", "timeout"): 1,
            ("served later than promised", ""): 1,
            ("served at more cost than promised", ""): 1,
        }
        assert report.tenants[""].exceptions == {("dead lettered", "not_json"): 1}
        assert report.unreadable == 1

    async def test_the_page_has_the_roots_and_says_what_was_checked(self) -> None:
        findings = await (await make_trail()).verified()
        page = as_page(self.report(), findings, "an archive", None)
        assert "No problem was found" in page
        assert "those that the trail itself publishes" in page
        for told in (*findings.checked, *findings.unchecked):
            assert html.escape(told) in page
        assert "(--trust)" in page
        for chain, head in findings.heads.items():
            assert chain in page
            assert head.digest in page
        assert "&lt;acme&gt;" in page
        assert "<acme>" not in page

    def test_a_page_of_a_trail_with_problems_says_so(self) -> None:
        findings = Findings()
        findings.add("gap", "here", "one is missing")
        page = as_page(self.report(), findings, "an archive", "keys.json")
        assert "can't be relied on: 1 gap" in page
        assert "No problem was found" not in page
        assert "those that keys.json names" in page

    async def test_the_command_verifies_what_it_tells_of(self, tmp_path: Path) -> None:
        trail = Archived(tmp_path / "archive", await make_trail())
        await trail.fill()
        output = tmp_path / "page.html"
        command = ["audit", "report", "--format", "regulator", "--output", str(output)]
        done = CliRunner().invoke(app, [*command, "--archive", str(tmp_path / "archive")])
        assert done.exit_code == 0, done.output
        assert "No problem was found" in output.read_text()


class TestRetention:
    def days(self, settings: Settings) -> dict[str, float]:
        topics = Catalogue(settings).shared_topics()
        day_ms = 24 * 3600 * 1000
        return {t.name: int(t.config().get("retention.ms", 0)) / day_ms for t in topics}

    def test_the_preset_keeps_evidence_and_roots_for_six_months_and_more(self) -> None:
        standard = self.days(make_settings())
        kept = self.days(make_settings(retention="eu-ai-act"))
        assert standard["yard.evidence"] == 30
        assert kept["yard.evidence"] >= 184
        assert kept["yard.evidence-roots"] > kept["yard.evidence"]
        changed = {name for name, days in kept.items() if days != standard[name]}
        # Texts stay no longer.
        assert changed == {"yard.evidence", "yard.evidence-roots"}

    def test_an_archive_may_not_delete_what_is_to_be_kept(self) -> None:
        assert Settings(retention="eu-ai-act", archive_days=200).archive_days == 200
        assert Settings(archive_days=10).archive_days == 10
        told = "SHUNTER_ARCHIVE_DAYS: .* keeps evidence longer: set 200 days at least, or none"
        with pytest.raises(UserError, match=told):
            settings_from(retention="eu-ai-act", archive_days=199)
