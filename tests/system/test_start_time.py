"""A start that is to end: a signal is heeded from the first moment on, by process 1 as well."""

import asyncio
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from processes import assert_eventually
from running_system import ROOT, System

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULE, _, FUNCTION = PROJECT["scripts"]["shunter"].partition(":")
# What pip makes of the entry point.
SCRIPT = f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"
WAYS = {"module": ["-m", "shunter"], "script": ["-c", SCRIPT]}
UNSHARE = shutil.which("unshare")
# For a machine that has much else to do; none takes more than 2 s on a quiet one.
END_S_MAX = 20.0


@functools.cache
def can_isolate() -> bool:
    if UNSHARE is None:
        return False
    tried = [UNSHARE, "--pid", "--fork", sys.executable, "-c", ""]
    return subprocess.run(tried, check=False, capture_output=True).returncode == 0


class FirstProcess:
    """A command of Shunter as the process 1 of its namespace, as it is in a container."""

    def __init__(self, *arguments: str) -> None:
        if UNSHARE is None or not can_isolate():
            pytest.skip("makes a namespace of processes, which this user or system can't")
        self.outer = subprocess.Popen(
            [UNSHARE, "--pid", "--fork", "--kill-child", sys.executable, *arguments],
            cwd=ROOT,
            # Nothing listens there.
            env=os.environ | {"SHUNTER_BOOTSTRAP_SERVERS": "127.0.0.1:9"},
            stderr=subprocess.PIPE,
            text=True,
        )
        children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        assert_eventually(lambda: bool(children.read_text()), "it has been forked")
        self.proc = Path("/proc") / children.read_text().split()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.outer.kill()
        self.outer.communicate()

    def heeds_sigterm(self) -> bool:
        found = re.search(r"^SigCgt:\s*(\w+)$", (self.proc / "status").read_text(), re.MULTILINE)
        assert found
        return bool(int(found[1], 16) & 1 << (signal.SIGTERM - 1))

    def terminate(self) -> tuple[int, str]:
        """Return its exit status and what it said."""
        os.kill(int(self.proc.name), signal.SIGTERM)
        _, said = self.outer.communicate(timeout=END_S_MAX)
        return self.outer.returncode, said


def said_by(command: str) -> str:
    return f"shunter {command.partition(' ')[0]}: told to stop before it had started\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["router", "worker premium-eu"])
def test_process_1_of_a_container_ends_before_its_imports_have(command: str, way: str) -> None:
    with FirstProcess(*WAYS[way], *command.split()) as first:
        assert_eventually(first.heeds_sigterm, "it heeds SIGTERM")
        # The settings', of which the import takes a tenth of a second on a quiet machine.
        assert "pydantic_core" not in (first.proc / "maps").read_text()
        assert first.terminate() == (0, said_by(command))


def test_process_1_that_has_something_to_do_tells_that_it_was_not_done() -> None:
    with FirstProcess("-m", "shunter", "topics", "apply") as first:
        assert_eventually(first.heeds_sigterm, "it heeds SIGTERM")
        assert first.terminate() == (128 + signal.SIGTERM, "")


def test_what_heeds_the_signals_imports_nothing_that_takes_long() -> None:
    code = (
        f"import sys; known = {{*sys.modules}}; import {MODULE};"
        " print(*(n for n in sys.modules if n not in known and n.partition('.')[0]"
        " not in sys.stdlib_module_names))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert sorted(found.stdout.split()) == ["shunter", MODULE]


async def groups_of(system: System) -> list[str]:
    client = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap_servers)
    await client.start()
    try:
        found = await client.list_consumer_groups()
    finally:
        await client.close()
    return [group for group, _ in found if group.startswith(f"{system.prefix}.")]


def interrupt(
    command: list[str], env: dict[str, str], after_s: float, line: str | None
) -> tuple[int, str]:
    """Start a command, send SIGTERM so long after its start or its line, return status and log."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shunter", *command],
        cwd=ROOT,
        env=os.environ | env,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    watchdog = threading.Timer(3 * END_S_MAX, process.kill)
    watchdog.start()
    try:
        while line is not None and line not in "".join(said[-1:]):
            said.append(process.stderr.readline())
            assert said[-1], f"ended before it said {line!r}: {''.join(said)}"
        time.sleep(after_s)
        process.terminate()
        _, rest = process.communicate(timeout=END_S_MAX)
    finally:
        process.kill()
        watchdog.cancel()
    return process.returncode, "".join([*said, rest])


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("command", ["router", "worker premium-eu"])
async def test_a_start_ends_at_any_moment(
    kafka: str, prefix: str, tmp_path: Path, command: str
) -> None:
    """Else it takes partitions, is killed, and they wait until its session has expired."""
    async with System(kafka, prefix, tmp_path) as system:
        env = {
            "SHUNTER_BOOTSTRAP_SERVERS": kafka,
            "SHUNTER_TOPIC_PREFIX": prefix,
            "SHUNTER_FLEET": str(tmp_path / "fleet.yaml"),
        }
        # As it starts, imports, and looks at its topics.
        for after_s in (0.0, 0.05, 0.2, 0.4):
            status, said = await asyncio.to_thread(
                interrupt, command.split(), env, after_s, line=None
            )
            # Without a handler the default action ends what is not process 1.
            wanted = (0, said_by(command))
            assert (status, said) in {wanted, (-signal.SIGTERM, "")}, after_s
        assert await groups_of(system) == []
        # As it reads what it has to know, joins its groups, and takes its partitions.
        for after_s in (0.0, 0.05, 0.2):
            status, said = await asyncio.to_thread(
                interrupt, command.split(), env, after_s, line="starts with"
            )
            assert status == 0, f"{after_s}: {said}"
