"""An attestation is verified by a library in another language, with which it shares no code."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from attestation_cases import proof_of
from audit_cases import make_trail
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from stream_cases import make_key

from shunter.audit.attestation import attest

SOURCE = Path(__file__).parents[1] / "support/dsse_verifier"


@pytest.mark.skipif(shutil.which("go") is None, reason="no `go` to build the verifier with")
async def test_go_verifies_it_and_refuses_another_key(tmp_path: Path) -> None:
    program = tmp_path / "verifier"
    build = ["go", "build", "-buildvcs=false", "-o", str(program), "."]
    subprocess.run(build, cwd=SOURCE, check=True, timeout=180, capture_output=True)  # noqa: ASYNC221
    document = attest(proof_of(await make_trail()), make_key(7))
    (tmp_path / "good.json").write_text(json.dumps(document))
    payload = document["payload"]
    document["payload"] = payload[:-8] + ("A" if payload[-8] != "A" else "B") + payload[-7:]
    (tmp_path / "bad.json").write_text(json.dumps(document))
    for number in (7, 8):
        public = make_key(number).private.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{number}.pem").write_bytes(pem)

    def said(envelope: str, key: str) -> str:
        command = [program, tmp_path / envelope, tmp_path / key]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout

    assert said("good.json", "7.pem") == "verified: application/vnd.in-toto+json\n"
    assert said("good.json", "8.pem").startswith("refused: ")
    assert said("bad.json", "7.pem").startswith("refused: ")
