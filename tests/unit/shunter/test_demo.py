"""`shunter demo`, as a newcomer runs it."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from shunter.demo.trace import load_rows

pytestmark = pytest.mark.kafka

ENDED_S_MAX = 110.0
REQUESTS = 150
QUICK = ["--requests", str(REQUESTS), "--speed", "20"]


def demo(kafka: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "shunter", "demo", "--bootstrap-servers", kafka, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENDED_S_MAX)


async def topics(kafka: str) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        found: list[str] = await admin.list_topics()
        return found
    finally:
        await admin.close()


@pytest.fixture(scope="module")
def quick(kafka: str) -> "subprocess.CompletedProcess[str]":
    """One short run for all tests of its outcome."""
    return demo(kafka, *QUICK, "--json")


@pytest.mark.slow
async def test_a_short_demo_loses_and_doubles_nothing(quick, kafka):
    assert quick.returncode == 0, quick.stderr
    assert quick.stdout.count("\n") == 1
    found = json.loads(quick.stdout)
    for name in ("lost", "duplicated", "dead_lettered", "constraint_violations", "unexplained"):
        assert found[name] == 0
    assert found["requests"] == found["results"] == REQUESTS
    # Beside other tests the machine may be too slow for its pools, which then shed a few.
    assert set(found["statuses"]) <= {"completed", "rejected"}
    assert found["statuses"]["completed"] >= 0.97 * REQUESTS
    served = sum(figures["requests"] for figures in found["by_pool"].values())
    assert served == found["statuses"]["completed"]
    assert sum(figures["requests"] > 0 for figures in found["by_pool"].values()) >= 3
    tasks = {row.task for row in load_rows(REQUESTS)}
    assert set(found["by_task"]) == set(found["slo_attainment"]["by_task"]) == tasks
    assert found["batches"]["mean_size"] > 4
    assert found["cost_usd"] > 0
    trail = found["trail"]
    # Which counts, since no key is trusted that the demo's installation key has not introduced.
    assert (trail["problems"], len(trail["trusted"])) == ({}, 32)
    assert trail["records"] > 2 * REQUESTS > trail["roots"] > trail["chains"] > 0
    assert found["cost_all_premium_usd"] > 0
    assert not [name for name in await topics(kafka) if name.startswith("demo-")]
    assert f"{REQUESTS}/{REQUESTS} published" in quick.stderr


@pytest.mark.slow
async def test_on_a_terminal_its_lines_of_python_work_until_ctrl_c(kafka):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shunter", "demo", "--bootstrap-servers", kafka, *QUICK]
    # Lines as long as the terminal is wide, so that an address is on one.
    wide = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    running = await asyncio.to_thread(
        subprocess.Popen, command, stdin=theirs, stdout=theirs, stderr=theirs, env=wide
    )
    os.close(theirs)
    try:
        printed = _until(ours, "until Ctrl-C here.")
        lines = re.findall(r"^(?:from openai|door = |print\(door).*$", printed, re.MULTILINE)
        assert len(lines) == 3, printed
        asked = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", "\n".join(lines)],
            capture_output=True,
            text=True,
            timeout=ENDED_S_MAX,
        )
        assert (asked.returncode, asked.stderr) == (0, "")
        assert asked.stdout.strip()
        running.send_signal(signal.SIGINT)
        assert "Stopping ..." in _until(ours, "")
        assert running.wait(ENDED_S_MAX) == 0
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    assert not [name for name in await topics(kafka) if name.startswith("demo-")]


def _until(terminal: int, wanted: str) -> str:
    """Read what a terminal shows until it has what is wanted; all of it where that is nothing."""
    shown, end = "", time.monotonic() + ENDED_S_MAX
    while not wanted or wanted not in shown:
        assert select.select([terminal], [], [], end - time.monotonic())[0], shown
        try:
            shown += os.read(terminal, 65_536).decode(errors="replace").replace("\r", "")
        except OSError:  # who wrote to it is gone
            assert not wanted, shown
            break
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


async def test_a_prefix_that_is_in_use_is_refused(kafka, prefix):
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(f"{prefix}.results", 4, 1)])
    await admin.close()
    found = demo(kafka, *QUICK, "--topic-prefix", prefix)
    assert found.returncode == 1
    assert f"{prefix}.results" in found.stderr
    assert "--topic-prefix" in found.stderr
    # It is somebody else's.
    assert f"{prefix}.results" in await topics(kafka)
