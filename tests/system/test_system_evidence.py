"""The whole trail on real Kafka: signed by real processes, checked by the commands."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from running_system import ROOT, System, chat
from typer.testing import CliRunner

from shunter import console
from shunter.cli import app

pytestmark = pytest.mark.kafka

COUNT = 12


class Auditor:
    """Runs commands with the settings of a system, and a terminal that is wide enough."""

    def __init__(self, system: System) -> None:
        self._env = {
            "SHUNTER_BOOTSTRAP_SERVERS": system.bootstrap_servers,
            "SHUNTER_TOPIC_PREFIX": system.prefix,
            "SHUNTER_FLEET": str(system.directory / "fleet.yaml"),
            "SHUNTER_POLICY": str(system.directory / "policy.yaml"),
            "SHUNTER_EVIDENCE_SECRET": "a secret",
        }

    async def run(self, *arguments: object, code: int = 0) -> str:
        """Run a command in this process; return what it printed, or the error it ended with."""
        words = [str(word) for word in arguments]
        with wide_terminal():
            done = await asyncio.to_thread(CliRunner().invoke, app, words, env=self._env)
        assert done.exit_code == code, (words, done.output, done.exception)
        return f"{done.output}{done.exception if code else ''}"

    async def run_apart(self, *words: object) -> str:
        """Run a program of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *map(str, words),
            cwd=ROOT,
            env=os.environ | self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, (words, out.decode())
        return out.decode()


@contextmanager
def wide_terminal() -> Iterator[None]:
    widths = console.out.width, console.err.width
    console.out.width = console.err.width = 200
    try:
        yield
    finally:
        console.out.width, console.err.width = widths


async def traffic(system: System) -> dict[str, dict[str, object]]:
    """Serve requests of two tenants, a router being killed between them."""
    requests = {
        f"r{n}": chat(
            f"r{n}",
            tenant=f"tenant-{n % 2}",
            constraints={"regions": ["eu-west"]} if n % 3 == 0 else {},
            # So that a slow machine is in time as well.
            deadline=time.time() + 600,
        )
        for n in range(COUNT)
    }
    system.start_all()
    names = list(requests)
    for name in names[: COUNT // 2]:
        await system.publish(requests[name])
    await system.publish(b"no request")
    await system.wait_for_results(names[: COUNT // 2])
    system.kill("router")
    system.start("router")
    for name in names[COUNT // 2 :]:
        await system.publish(requests[name])
    await system.wait_for_results(names)
    return requests


async def check_topics(auditor: Auditor, tmp_path: Path) -> None:
    keys, heads = tmp_path / "keys.json", tmp_path / "heads.json"
    assert "3 keys in" in await auditor.run("evidence", "keys", "--output", keys)
    told = json.loads(await auditor.run("audit", "verify", "--json"))
    assert (told["good"], told["problems"]) == (True, []), told
    assert (told["requests"], told["open"]) == (COUNT, 0)
    for _ in range(2):
        out = await auditor.run("audit", "verify", "--keys", keys, "--heads", heads)
        assert "verified, so far as it was checked" in out
    stranger = json.loads(keys.read_text())[:1]
    (tmp_path / "one-key.json").write_text(json.dumps(stranger))
    out = await auditor.run("audit", "verify", "--keys", tmp_path / "one-key.json", code=1)
    assert "is published, but not among those trusted" in out


async def check_trust(auditor: Auditor, trusted: str) -> None:
    """Keys that the processes made at their starts are introduced by one that was, offline."""
    out = await auditor.run("audit", "verify", "--trust", trusted)
    assert f"checked: each signing key is introduced by {trusted}" in out
    assert f"checked: {COUNT} answers on the results topic against their digests" in out
    out = await auditor.run("audit", "verify", "--trust", "0" * 32, code=1)
    assert "but no trusted key has introduced it as that" in out


async def check_revocations(auditor: Auditor, trusted: str, tmp_path: Path) -> None:
    """Anybody's word goes where nobody is trusted; else the installation key's alone."""
    listed = json.loads(await auditor.run("evidence", "keys", "--json"))
    router = min(k["statement"]["key"] for k in listed if "router" in k["statement"]["writer"])
    await auditor.run("evidence", "revoke", router, "--reason", "lost", "--at", "1")
    out = await auditor.run("audit", "verify", code=1)
    assert f"key {router} was revoked" in out
    out = await auditor.run("audit", "verify", "--trust", trusted)
    assert f"no trusted key has signed the revocation of {router}" in out
    signed, to = ("--signed-by", tmp_path / "installation.pem"), tmp_path / "revoked.json"
    words = ("evidence", "revoke", router, "--reason", "lost", "--at", "1")
    await auditor.run(*words, *signed, "--output", to)
    assert "verified" in await auditor.run("audit", "verify", "--trust", trusted)
    assert "1 published" in await auditor.run("evidence", "publish", to)
    out = await auditor.run("audit", "verify", "--trust", trusted, code=1)
    assert f"key {router} was revoked" in out


async def introducing(auditor: Auditor, tmp_path: Path) -> tuple[str, Path]:
    """Return the fingerprint of an installation key, and a key that introduces for it."""
    installation, hosts, to = (tmp_path / name for name in ("installation.pem", "hosts", "to"))
    told = await auditor.run("evidence", "keygen", installation, "--installation")
    await auditor.run("evidence", "keygen", hosts)
    signed = ("--signed-by", installation, "--output", to)
    await auditor.run("evidence", "introduce", hosts, "--may-introduce", "*", *signed)
    assert "1 published" in await auditor.run("evidence", "publish", to)
    return told.split()[1], hosts


async def check_proofs(auditor: Auditor, tmp_path: Path, request: dict[str, object]) -> None:
    proof, name = tmp_path / "proof.json", request["id"]
    await auditor.run("audit", "proof", name, "--output", proof)
    keys = tmp_path / "keys.json"
    out = await auditor.run("audit", "verify-proof", proof, "--keys", keys)
    assert "executed, signed by worker/premium-eu" in out
    document = json.loads(proof.read_text())
    document["proofs"][0]["record"]["tenant"] = "another"
    (tmp_path / "false.json").write_text(json.dumps(document))
    out = await auditor.run("audit", "verify-proof", tmp_path / "false.json", code=1)
    assert "the record is not the one that was signed" in out
    (tmp_path / "request.json").write_bytes(orjson.dumps(request))
    out = await auditor.run("audit", "match", name, tmp_path / "request.json")
    # Held, if the router had not heard of a worker by then.
    assert re.search("it is the whole request, by the evidence '(placed|held)'", out)
    body = tmp_path / "body.json"
    body.write_bytes(orjson.dumps(request["body"]))
    out = await auditor.run("audit", "match", name, body)
    assert re.search("it is the body of the request, by the evidence '(placed|held)'", out)
    part, sent = tmp_path / "part.json", tmp_path / "request.json"
    await auditor.run("audit", "disclose", sent, "/tenant", "--output", part)
    out = await auditor.run("audit", "match", name, part)
    assert f'/tenant of the request was "{request["tenant"]}", by the evidence' in out
    part.write_text(part.read_text().replace(str(request["tenant"]), "another"))
    await auditor.run("audit", "match", name, part, code=1)
    sent.write_bytes(orjson.dumps(request | {"deadline": 1.0}))
    out = await auditor.run("audit", "match", name, sent, code=1)
    assert "it is the body of the request, but what the file has beside it is not" in out
    (tmp_path / "other.json").write_text('{"messages": []}')
    await auditor.run("audit", "match", name, tmp_path / "other.json", code=1)
    assert "the same again" in await auditor.run("audit", "replay", name)


async def check_archive(auditor: Auditor, trusted: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    command = ("-m", "shunter", "evidence", "archive", "--to", archive, "--once")
    assert " records archived" in await auditor.run_apart(*command)
    files = sorted(path.name for path in archive.rglob("*.parquet"))
    await auditor.run_apart(*command)
    again = sorted(path.name for path in archive.rglob("*.parquet"))
    # Heartbeats go on, so the keys have news.
    assert set(files) <= set(again)
    out = await auditor.run("audit", "verify", "--archive", archive, "--trust", trusted)
    assert "verified, so far as it was checked" in out
    assert "executed" in await auditor.run("audit", "show", "r1", "--archive", archive)
    out = await auditor.run("audit", "report", "--archive", archive, "--format", "json")
    total = json.loads(out)["total"]
    assert (total["requests"], total["completed"]) == (COUNT, COUNT)
    assert total["cost_usd"] > 0
    page = tmp_path / "report.html"
    await auditor.run("audit", "report", "--archive", archive, "--format", "html", "--output", page)
    assert "<td>tenant-1</td>" in page.read_text()
    await auditor.run("audit", "export", tmp_path / "trail", "--archive", archive)
    second = ("deploy/verify_trail.py", "--trust", trusted)
    assert "verified" in await auditor.run_apart(*second, tmp_path / "trail")
    await auditor.run("audit", "export", tmp_path / "trail-of-topic")
    assert "verified" in await auditor.run_apart(*second, tmp_path / "trail-of-topic")


async def test_a_trail_is_signed_checked_archived_and_forgotten(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    extra = {"SHUNTER_EVIDENCE_SECRET": "a secret", "SHUNTER_EVIDENCE_HEADS_S": "1"}
    async with System(kafka, prefix, tmp_path, extra_env=extra, policy_speed=2.0) as system:
        auditor = Auditor(system)
        trusted, introducer = await introducing(auditor, tmp_path)
        system.extra_env["SHUNTER_EVIDENCE_INTRODUCER"] = str(introducer)
        key_file = tmp_path / "router.pem"
        await auditor.run("evidence", "keygen", key_file)
        system.env_of["router"] = {"SHUNTER_EVIDENCE_KEY": str(key_file)}
        requests = await traffic(system)
        await check_topics(auditor, tmp_path)
        await check_trust(auditor, trusted)
        await check_proofs(auditor, tmp_path, requests["r1"])
        await check_archive(auditor, trusted, tmp_path)
        out = await auditor.run("audit", "forget", "tenant-1", "--yes")
        assert "salts of tenant-1 destroyed" in out
        out = await auditor.run("audit", "match", "r1", tmp_path / "request.json", code=1)
        assert "it was forgotten" in out
        assert "verified" in await auditor.run("audit", "verify")
        await check_revocations(auditor, trusted, tmp_path)
