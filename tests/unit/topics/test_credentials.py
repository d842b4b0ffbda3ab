"""No credential in anything that a process writes; private keys that are nobody else's."""

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from client_commands import installation

from shunter import cli
from streams.tracing.setup import TelemetryError, from_environment
from topics import Settings
from topics.admin.provisioning import apply
from topics.credentials import conceal, masked
from topics.signing.key_files import KeyFileError, check_key_file, write_key_file

SECRET = "kanarienvogel"  # noqa: S105  a canary
QUOTED = "kanarien/vogel+2"
FLEET = """
pools:
  served:
    device: h200
    count: 1
    region: eu-west
    serves:
      - {model: llama-3.1-8b, variant: llama-3.1-8b-fp8, precision: fp8, max_batch: 64}
    backend: {type: openai, base_url: "http://127.0.0.1:9/v1", api_key_env: ANY_NAME}
"""
# Each in a setting of its own, as operators might give them.
CANARIES = {
    "SHUNTER_SASL_USERNAME": "operator",
    "SHUNTER_SASL_PASSWORD": f"{SECRET}-1",
    "SHUNTER_EVIDENCE_SECRET": f"{SECRET}-2",
    "SHUNTER_ARCHIVE": f"s3://AKIDX:{QUOTED}@bucket/trail?secret={SECRET}-3",
    "SHUNTER_JAEGER_URL": f"http://operator:{SECRET}-4@127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://operator:{SECRET}-5@127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}-6,x-key={SECRET}-7",
    "OTEL_TRACES_SAMPLER": "always_on",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-8",
    "ANY_NAME": f"{SECRET}-9",
    "SHUNTER_LOG_LEVEL": "debug",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p4ss@host:1/x", "http://***@host:1/x"),
        ("at 's3://AK:a/b+c@bucket/x' no", "at 's3://***@bucket/x' no"),
        ("(got 'http://user:secretpass...')", "(got 'http://***')"),
        ("no broker at u:p4ss@kafka:9092, b:9092", "no broker at ***@kafka:9092, b:9092"),
        ("abfs://x?sig=abc%2F1&y=2", "abfs://x?sig=***&y=2"),
        ("http://host:9092/a and b", "http://host:9092/a and b"),
        ("inference.evidence/3@17: altered", "inference.evidence/3@17: altered"),
        ("by ann@machine", "by ann@machine"),
        ("http://127.0.0.1:16686 has no trace", "http://127.0.0.1:16686 has no trace"),
    ],
)
def test_what_urls_hold_is_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_what_the_environment_holds_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("X_PASSWORD_FILE", "/run/secrets/x")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    conceal(CANARIES["ANY_NAME"])
    told = masked(f"failed at /run/secrets/x, false: {[*CANARIES.values()]} Bearer {SECRET}-6")
    assert SECRET not in told
    assert QUOTED not in told
    assert told.startswith("failed at /run/secrets/x, false: ['operator', ")


def test_an_error_that_nobody_expected_holds_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    error = RuntimeError(f"http://u:{SECRET}@host\x1b[2J")
    sys.excepthook(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: http://***@host\\x1b[2J\n"


class TestKeyFiles:
    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o660])
    def test_what_others_may_use_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "key.pem"
        path.touch()
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, 12_345, 12_345)
        with pytest.raises(KeyFileError) as caught:
            check_key_file(path)
        assert str(caught.value) == (
            f"{path}: its mode is {mode:04o}, so that others than its owner may use this private"
            f" key; run `chmod 600 {path}`"
        )

    @pytest.mark.parametrize(
        ("mode", "owner", "group", "is_fit"),
        [
            (0o600, 7, 7, True),
            (0o400, 7, 7, True),
            (0o440, 0, 2000, True),
            (0o640, 0, 2000, True),
            (0o440, 7, 2000, False),
            (0o440, 0, 3000, False),
            (0o444, 0, 2000, False),
            (0o460, 0, 2000, False),
        ],
    )
    def test_a_secret_that_kubernetes_mounts_for_the_group_is_fit(
        self,
        monkeypatch: pytest.MonkeyPatch,
        mode: int,
        owner: int,
        group: int,
        is_fit: bool,
    ) -> None:
        found = SimpleNamespace(st_mode=stat.S_IFREG | mode, st_uid=owner, st_gid=group)
        monkeypatch.setattr(Path, "stat", lambda _: found)
        monkeypatch.setattr(os, "getgroups", lambda: [2000])
        if is_fit:
            check_key_file(Path("key.pem"))
        else:
            with pytest.raises(KeyFileError):
                check_key_file(Path("key.pem"))

    def test_it_is_made_for_its_owner_alone_whoever_stands_by(self, tmp_path: Path) -> None:
        path, elsewhere = tmp_path / "key.pem", tmp_path / "elsewhere"
        # Left by a crash, or laid out by another: nothing is written through it.
        (tmp_path / ".key.pem.new").symlink_to(elsewhere)
        before = os.umask(0)
        try:
            write_key_file(path, b"key")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == b"key"
        assert not elsewhere.exists()
        assert [each.name for each in tmp_path.iterdir()] == ["key.pem"]

    def test_tls_keys_are_looked_at_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = tmp_path / "tls.pem"
        key.touch()
        key.chmod(0o644)
        settings = Settings(security_protocol="SSL", ssl_certfile=key)
        with pytest.raises(KeyFileError, match=r"tls\.pem: its mode is 0644"):
            settings.kafka_options()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(key))
        with pytest.raises(TelemetryError, match=r"tls\.pem: its mode is 0644"):
            from_environment("router", "r")

    def test_a_process_says_so_in_one_line(self, tmp_path: Path) -> None:
        key = tmp_path / "evidence.pem"
        key.write_text("x")
        key.chmod(0o644)
        outcome = subprocess.run(
            [sys.executable, "-m", "shunter", "evidence", "keygen", "--replace", key],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert outcome.returncode == 1
        assert outcome.stderr.startswith(f"error: {key}: its mode is 0644")
        assert len(outcome.stderr.splitlines()) == 1


async def told(
    words: str, environment: Mapping[str, str], until: str = "", seconds: float = 120.0
) -> str:
    """Return all that a process writes until its end, or until it has said something."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shunter", *words.split()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    lines = []
    try:
        async with asyncio.timeout(seconds):
            while line := (await process.stdout.readline()).decode():
                lines.append(line)
                if until and re.search(until, line):
                    process.send_signal(signal.SIGTERM)
                    until = ""
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return "".join(lines)


def assert_silent(text: str) -> None:
    assert text
    for secret in (SECRET, QUOTED):
        assert secret not in text, text


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "router",
        "worker served",
        "topics describe",
        f"topics describe --bootstrap-servers operator:{SECRET}@127.0.0.1:9",
        "evidence archive --once",
        f"audit show x --archive s3://AKIDX:{QUOTED}@bucket/trail",
        "trace 0af7651916cd43dd8448eb211c80319c",
        f"router --topic-prefix http://u:{SECRET}@x",
        f"trace x --jaeger ftp://u:{SECRET}@x",
    ],
)
async def test_an_error_at_start_holds_none(words: str, fleet: Path) -> None:
    environment = {
        **CANARIES,
        "SHUNTER_FLEET": str(fleet),
        "SHUNTER_BOOTSTRAP_SERVERS": f"operator:{SECRET}@127.0.0.1:9",
    }
    assert_silent(await told(words, environment))


async def test_a_fleet_whose_url_holds_one_is_refused_without_it(fleet: Path) -> None:
    text = FLEET.replace("127.0.0.1:9", f"operator:{SECRET}@127.0.0.1:9")
    fleet.write_text(text)
    answer = await told(f"policy check --fleet {fleet}", CANARIES)
    assert_silent(answer)
    assert "must hold no credentials" in answer


@pytest.mark.kafka
class TestRunning:
    async def test_processes_that_run_and_fail_hold_none(
        self, kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch, fleet: Path
    ) -> None:
        settings = await installation(kafka, prefix, monkeypatch)
        await apply(settings, ["served"])
        environment = {**CANARIES, "SHUNTER_FLEET": str(fleet)}
        secured = {**environment, "SHUNTER_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}
        answers = await asyncio.gather(
            told("router", environment, "took over .*requests"),
            told("worker served", environment, "took over"),
            told("router", {**environment, "SHUNTER_LOG_FORMAT": "json"}, "starts with"),
            told("topics describe", secured),
            told("evidence archive --once", environment),
        )
        for answer in answers:
            assert_silent(answer)
        assert "starts with" in answers[0]
        assert "'archive': 's3://***@bucket/trail?secret=***'" in answers[0]
