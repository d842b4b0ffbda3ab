"""`shunter evidence log` on a real Kafka: killed again and again, and asked for by auditors."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from audit_cases import make_trail
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from forked import FORKER, ran
from public_log_cases import KEY, Installation, PlainWitness
from typer.testing import CliRunner

from shunter.cli import app
from shunter.public_log.store import DirectoryStore
from shunter.public_log.tree import read_entries
from topics.public_log.entries import entry_of
from topics.public_log.notes import parse_checkpoint, parse_note
from topics.public_log.tiles import TILE_WIDTH
from topics.signing.key_files import write_key_file
from topics.signing.merkle import leaf_hash, tree_hash

pytestmark = pytest.mark.kafka

KILLS = 8
STEP_S_MAX = 60.0


class Signing:
    """Commits roots to a topic of a real Kafka, a few at a time, until told to stop."""

    def __init__(self, bootstrap_servers: str, prefix: str) -> None:
        self.values: list[bytes] = []
        self._yard = Installation()
        self._topic = f"{prefix}.evidence-roots"
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        for future in admin.create_topics([NewTopic(self._topic, 2)]).values():
            future.result(20)
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 0})
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._thread.join()
            assert self._producer.flush(20) == 0

    def _run(self) -> None:
        while not self._stopped.wait(0.02):
            for n, value in enumerate(self._yard.sign(7)):
                self._producer.produce(self._topic, value, b"chain", n % 2)
                self.values.append(value)
            self._producer.poll(0)


def test_killed_at_random_moments_it_has_signed_one_tree(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    moments, place = random.Random(19), tmp_path / "log"
    key, policy = tmp_path / "log.key", tmp_path / "policy"
    write_key_file(key, KEY.text.encode())
    signing = Signing(kafka, prefix)
    command = ["evidence", "log", "--to", str(place)]
    command += ["--key", str(key), "--policy", str(policy), "--bootstrap-servers", kafka]
    command += ["--topic-prefix", prefix]
    environment = {**os.environ, "SHUNTER_PUBLIC_LOG_EVERY_S": "0.01"}
    with PlainWitness("w").serving() as witness, (tmp_path / "told").open("wb") as log:
        policy.write_text(f"log {KEY.verifier.text}\n{witness.line}quorum w\n")
        with signing.going_on():
            for _ in range(KILLS):
                before, until = len(witness.seen), time.monotonic() + STEP_S_MAX
                files = {"stdout": log.fileno(), "stderr": log.fileno()}
                process = FORKER.start(command, environment, **files)
                while len(witness.seen) < before + 3:
                    assert process.poll() is None, (tmp_path / "told").read_text()
                    assert time.monotonic() < until, (tmp_path / "told").read_text()
                    time.sleep(0.005)
                time.sleep(moments.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                process.wait()
        done = ran(*command, "--once", env=environment, timeout_s=60)
        assert done.returncode == 0, done.stderr
    store = DirectoryStore(place)
    head = parse_checkpoint(parse_note(store.read("checkpoint") or b"").text)
    bundles = (read_entries(store, head.size, n) for n in range(-(-head.size // TILE_WIDTH)))
    entries = [entry for bundle in bundles for entry in bundle]
    # Each root once, whatever was done again.
    assert sorted(entries) == sorted(entry_of(value) or b"" for value in signing.values)
    leaves = [leaf_hash(entry) for entry in entries]
    assert len(witness.seen) >= 3 * KILLS
    for checkpoint in [*witness.seen, head]:
        assert tree_hash(leaves[: checkpoint.size]) == checkpoint.root, checkpoint.size


async def test_an_auditor_asks_trail_and_log(kafka: str, prefix: str, tmp_path: Path) -> None:
    trail = await make_trail()
    trail.publish(kafka, prefix)
    runner = CliRunner()
    at = ["--bootstrap-servers", kafka, "--topic-prefix", prefix]
    key, policy, kept = (tmp_path / name for name in ("log.key", "policy", "checkpoint"))
    log = str(tmp_path / "log")

    def shunter(*words: str | Path, code: int = 0) -> str:
        told = runner.invoke(app, [str(word) for word in words])
        assert told.exit_code == code, (told.output, told.exception)
        return f"{told.output} {told.exception or ''}"

    def run(*words: str | Path) -> None:
        """Run a command that has a loop of its own, apart from the test's."""
        done = ran(*words, env={}, timeout_s=60)
        assert done.returncode == 0, done.stderr

    vkey = shunter("evidence", "log-keygen", key, "--origin", "log.example.com/yard").strip()
    assert key.stat().st_mode & 0o777 == 0o600
    policy.write_text(f"log {vkey}\nquorum none\n")
    run("evidence", "log", "--once", "--to", log, "--key", key, "--policy", policy, *at)
    believed = ["--log", log, "--policy", str(policy)]
    # There are no results on this Kafka.
    run("audit", "verify", "--no-results", *believed, "--checkpoint", kept, *at)
    assert parse_checkpoint(parse_note(kept.read_bytes()).text).size == len(trail.roots)
    proof = tmp_path / "proof.json"
    run("audit", "proof", "r3", *believed, "--output", proof, *at)
    told = shunter("audit", "verify-proof", proof, "--policy", policy)
    assert "of the log log.example.com/yard" in told
    document = json.loads(proof.read_text())
    document["log_proofs"][0] = document["log_proofs"][0].replace("index ", "index 1")
    proof.write_text(json.dumps(document))
    assert "proves nothing" in shunter("audit", "verify-proof", proof, "--policy", policy, code=1)
