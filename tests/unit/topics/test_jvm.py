"""The archive of Kafka's classes: brokers start from it, or without it where it is not fit."""

import logging
import subprocess
from pathlib import Path

import pytest

from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.jars import KAFKA_VERSION, BrokerError
from topics.embedded_broker.jvm import archive_path, java_command, record_archive

JARS = (Path("/nowhere/kafka.jar"),)


def shared(command: list[str]) -> list[str]:
    return [word for word in command if "SharedArchiveFile" in word]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHUNTER_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.kafka
def test_a_broker_starts_from_it() -> None:
    archive = record_archive()
    with EmbeddedBroker() as broker:
        assert str(archive) in Path(f"/proc/{broker.pid}/maps").read_text()


def test_without_one_java_starts_as_ever(cache: Path) -> None:
    assert not shared(java_command(JARS, "-Xmx64m"))


def test_one_that_java_refuses_is_told_and_no_failure(cache: Path) -> None:
    archive_path().write_bytes(b"of another Java, or cut off in the middle")
    command = java_command(JARS, "-Xmx64m")
    assert shared(command)
    ran = subprocess.run([*command, "-version"], capture_output=True, text=True, check=True)
    assert "warning" in ran.stdout + ran.stderr


def test_one_that_others_may_have_written_is_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive_path().touch(0o600)
    assert shared(java_command(JARS, "-Xmx64m"))
    archive_path().chmod(0o620)
    with caplog.at_level(logging.WARNING):
        assert not shared(java_command(JARS, "-Xmx64m"))
    assert f"{archive_path()} may have been written by another user" in caplog.text


def test_what_fails_leaves_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topics.embedded_broker.jars.PINS", cache / "pins")
    (cache / "pins").touch()
    (cache / f"kafka-{KAFKA_VERSION}").mkdir()
    with pytest.raises(BrokerError, match=r"(?s)did not start.*kafka\.Kafka"):
        record_archive()
    assert not archive_path().exists()
    assert not list(cache.glob("recorded-*"))
