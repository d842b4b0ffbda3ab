"""`shunter demo`, as a newcomer runs it."""

import json
import subprocess
import sys

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
    assert sum(figures["requests"] for figures in found["by_pool"].values()) == REQUESTS
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
