"""This version and a next one side by side, under load: an upgrade, and a rollback from it.

The next one is this one with a field more in each record that it writes. `tests/chaos/upgrade.py`
does the same with any version that is in the repository.
"""

from pathlib import Path

import pytest
from load import Load
from running_system import ROOT, System
from upgrade import next_version, roll
from verdict import POLICY_SPEED, TIMEOUTS

pytestmark = pytest.mark.kafka

PER_SECOND = 10.0
# Each process works for a while beside those of the other version.
CALM_S_MAX = 5.0


@pytest.mark.slow
async def test_an_upgrade_and_a_rollback_lose_and_double_nothing(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    new = next_version(tmp_path / "next")
    system = System(kafka, prefix, tmp_path, extra_env=TIMEOUTS, policy_speed=POLICY_SPEED)
    async with system:
        rolled = await roll(system, Load(system, PER_SECOND), ROOT, new, CALM_S_MAX)
        assert not rolled.problems, f"{rolled.problems[:20]}\n{system.logs()}"
        # How many are in time is the machine's affair; that both versions serve is theirs.
        assert rolled.statuses["completed"] > 0, rolled.statuses
        await system.catch_up()
        # Both have written, and each has read what the other wrote.
        written = ["next_release" in each for of_id in system.results.values() for each in of_id]
        assert any(written)
        assert not all(written)
