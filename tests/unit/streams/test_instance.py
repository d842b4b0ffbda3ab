"""Names of processes: unique on a host, stable over restarts, and refused to a second process."""

import asyncio
import fcntl
import gc
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from forked import ran
from running_system import System, chat, eventually

from streams.kafka.instance_name import Claim, NameTakenError, claim_name
from streams.kafka.process_name import Process, this_process
from topics import Settings

SESSION_MS = 6000
HOST = socket.gethostname()
ANOTHER = Process("shunter.host.a.1234.0123456789abcdef", "host.a", 1234)


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.kafka.instance_name.set_up_logging", lambda *_: None)


def unnamed(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(state_dir=tmp_path / "state", **changes)


def name_of(claim: Claim) -> str:
    return claim.settings.instance


def test_each_process_of_a_host_has_a_name_of_its_own_and_gets_it_back(tmp_path: Path) -> None:
    settings = unnamed(tmp_path)
    first, second, third = (claim_name(settings, "router", ()) for _ in range(3))
    assert [name_of(claim) for claim in (first, second, third)] == [HOST, f"{HOST}-1", f"{HOST}-2"]
    del second
    gc.collect()
    assert name_of(claim_name(settings, "router", ())) == f"{HOST}-1"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "worker of premium-eu"),
        ({"topic_prefix": "other"}, "router"),
        ({"bootstrap_servers": "127.0.0.1:9093"}, "router"),
    ],
)
def test_other_kinds_and_other_installations_have_names_of_their_own(
    tmp_path: Path, changes: dict[str, str], kind: str
) -> None:
    router = claim_name(unnamed(tmp_path), "router", ())
    assert name_of(claim_name(unnamed(tmp_path, **changes), kind, ())) == name_of(router)


def test_brokers_named_in_another_order_are_the_same_installation(tmp_path: Path) -> None:
    first = claim_name(unnamed(tmp_path, bootstrap_servers="a:1,b:2"), "router", ())
    second = claim_name(unnamed(tmp_path, bootstrap_servers="b:2, a:1"), "router", ())
    assert name_of(first) != name_of(second)


def test_a_chosen_name_is_refused_to_a_second_process_which_is_told_why(tmp_path: Path) -> None:
    settings = unnamed(tmp_path, instance="router-0")
    first = claim_name(settings, "router", ())
    with pytest.raises(NameTakenError, match=rf"'router-0' runs .* \(process {os.getpid()}\)"):
        claim_name(settings, "router", ())
    assert name_of(first) == "router-0"


def test_whoever_takes_a_name_knows_who_had_it(tmp_path: Path) -> None:
    first = claim_name(unnamed(tmp_path), "router", ())
    assert first.lock is not None
    assert first.lock.earlier == ()
    os.pwrite(first.lock.file, f"{ANOTHER.word}\nnot a process\n\xff".encode("latin-1"), 0)
    del first
    gc.collect()
    second = claim_name(unnamed(tmp_path), "router", ())
    assert second.lock is not None
    assert second.lock.earlier == (ANOTHER,)
    assert (
        os.pread(second.lock.file, 1000, 0).decode() == f"{ANOTHER.word}\n{this_process().word}\n"
    )


def test_names_that_no_file_could_have_are_kept_apart(tmp_path: Path) -> None:
    names = ["../../a", "..:..:a", "x" * 128, "x" * 127 + "y", "ä" * 128]
    claims = [claim_name(unnamed(tmp_path, instance=name), "router", ()) for name in names]
    assert [name_of(claim) for claim in claims] == names
    (installation,) = (tmp_path / "state").iterdir()
    assert len(list(installation.iterdir())) == len(names)


def test_where_no_state_can_be_kept_locks_are_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("no directory")
    monkeypatch.delenv("SHUNTER_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = claim_name(Settings(), "router", ()), claim_name(Settings(), "router", ())
    assert [name_of(first), name_of(second)] == [HOST, f"{HOST}-1"]
    assert (tmp_path / f"shunter-{os.geteuid()}").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_another_has_made_ready_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SHUNTER_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"shunter-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    assert claim_name(Settings(), "router", ()).lock is None
    assert not list((tmp_path / "elsewhere").iterdir())
    assert "no directory takes a lock on the name" in caplog.text
    assert "SHUNTER_STATE_DIR" in caplog.text


def test_a_file_system_without_locks_leaves_the_name_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    claim = claim_name(unnamed(tmp_path, instance="router-0"), "router", ())
    assert (name_of(claim), claim.lock) == ("router-0", None)


@pytest.mark.kafka
async def test_two_routers_of_a_host_without_names_both_go_on(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """They took each other's name, and minutes later both were gone."""
    session = {"SHUNTER_SESSION_TIMEOUT_MS": str(SESSION_MS)}
    async with System(kafka, prefix, tmp_path, extra_env=session, has_names=False) as system:
        system.start("router", "router-b", "premium-eu")
        await share(system)
        ids = [f"r-{number}" for number in range(40)]
        for request_id in ids:
            await system.publish(chat(request_id))
        await system.wait_for_results(ids, timeout_s=120)
        # Longer than a session, after which one had taken the name of the other again.
        await asyncio.sleep(1.5 * SESSION_MS / 1000)
        assert all(process.poll() is None for process in system.processes.values()), system.logs()
        writers = {e["writer"] for e in system.evidence if e["writer"].startswith("router/")}
        assert writers == {f"router/{HOST}", f"router/{HOST}-1"}


@pytest.mark.kafka
async def test_a_second_process_of_a_name_ends_at_once_and_the_first_goes_on(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        system.start_all()
        await system.publish(chat("before"))
        await system.wait_for_results(["before"], timeout_s=120)
        for command in (["router"], ["worker", "premium-eu"]):
            second = await asyncio.to_thread(run_second, system, command)
            assert second.returncode == 1
            assert f"named '{'router' if command == ['router'] else command[1]}-0' runs" in (
                second.stderr
            )
            assert "--instance" in second.stderr
        await system.publish(chat("after"))
        await system.wait_for_results(["after"], timeout_s=120)
        system.kill("router")
        system.start("router")
        await system.publish(chat("again"))
        await system.wait_for_results(["again"], timeout_s=120)


@pytest.mark.kafka
class TestElsewhere:
    """Another state directory stands for another host: its locks say nothing about this one."""

    @pytest.fixture(params=[SESSION_MS])
    async def system(
        self, kafka: str, prefix: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> AsyncIterator[System]:
        session = {"SHUNTER_SESSION_TIMEOUT_MS": str(request.param)}
        async with System(kafka, prefix, tmp_path, extra_env=session) as system:
            system.start_all()
            await system.publish(chat("before"))
            await system.wait_for_results(["before"], timeout_s=120)
            yield system

    async def serves(self, system: System, request_id: str) -> None:
        await system.publish(chat(request_id))
        await system.wait_for_results([request_id], timeout_s=120)

    async def is_there(self, system: System, name: str, place: Path) -> str:
        """Start a router of the same name there; return its log once it has taken over."""
        elsewhere(system, name, place)
        log = system.directory / f"{name}.log"

        async def took_over() -> bool:
            topic = system.catalogue.requests
            return log.exists() and f"took over {topic}[" in log.read_text()

        await eventually(took_over, "the successor has the partitions", 120)
        return log.read_text()

    @pytest.mark.slow
    async def test_a_second_process_of_a_name_ends_and_the_first_goes_on(
        self, system: System, tmp_path: Path
    ) -> None:
        for command in (["router"], ["worker", "premium-eu"]):
            second = await asyncio.to_thread(run_second, system, command, tmp_path / "b")
            assert second.returncode == 1
            assert "waiting up to 8 s" in second.stderr
            pid = system.processes[command[-1]].pid
            assert f"as process {pid} on host {HOST} from 127.0.0.1, and stays one" in (
                second.stderr
            )
        assert all(process.poll() is None for process in system.processes.values())
        await self.serves(system, "after")

    async def test_who_comes_after_a_death_waits_for_the_session_alone(
        self, system: System, tmp_path: Path
    ) -> None:
        system.kill("router")
        log = await self.is_there(system, "router-b", tmp_path / "b")
        assert "waiting up to 8 s to see whether it has ended" in log
        await self.serves(system, "after")

    @pytest.mark.parametrize("system", [10 * SESSION_MS], indirect=True)
    async def test_who_comes_after_a_farewell_does_not_wait(
        self, system: System, tmp_path: Path
    ) -> None:
        router = system.processes.pop("router")
        router.terminate()
        assert await asyncio.to_thread(router.wait, 60) == 0
        log = await self.is_there(system, "router-b", tmp_path / "b")
        assert "waiting" not in log
        await self.serves(system, "after")

    @pytest.mark.slow
    async def test_who_finds_its_name_taken_ends_and_says_so(
        self, system: System, tmp_path: Path
    ) -> None:
        """It stood still for longer than its session, and so had no claim to its name any more."""
        asleep = system.processes.pop("router")
        asleep.send_signal(signal.SIGSTOP)
        try:
            await self.is_there(system, "router-b", tmp_path / "b")
        finally:
            asleep.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(asleep.wait, 60) == 1
        log = (system.directory / "router.log").read_text()
        successor = system.processes["router-b"].pid
        assert f"process {successor} on host {HOST} has taken the name" in log
        await self.serves(system, "after")
        assert system.processes["router-b"].poll() is None


def elsewhere(system: System, name: str, place: Path) -> None:
    """Start a router under the name of the first, with locks of its own."""
    system.env_of[name] = {"SHUNTER_INSTANCE": "router-0", "SHUNTER_STATE_DIR": str(place)}
    system.start(name)


async def share(system: System) -> None:
    """Wait until both routers have a part of the ingest partitions."""

    async def is_shared() -> bool:
        logs = [(system.directory / f"{n}.log").read_text() for n in ("router", "router-b")]
        topic = system.catalogue.requests
        return all(f"took over {topic}[" in log for log in logs)

    await eventually(is_shared, "two routers share the partitions", 120)


def run_second(
    system: System, command: list[str], place: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Start what runs already once more, and wait until it has ended."""
    name = command[-1]
    environment = {
        "SHUNTER_BOOTSTRAP_SERVERS": system.bootstrap_servers,
        "SHUNTER_TOPIC_PREFIX": system.prefix,
        "SHUNTER_FLEET": str(system.directory / "fleet.yaml"),
        "SHUNTER_POLICY": str(system.directory / "policy.yaml"),
        "SHUNTER_INSTANCE": f"{name}-0",
    }
    environment |= system.extra_env
    if place is not None:
        environment["SHUNTER_STATE_DIR"] = str(place)
    return ran(*command, env=environment, timeout_s=60)
