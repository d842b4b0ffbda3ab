"""A short version of the long run (``run.py``): network, disk, rights, groups, partitions, zombies.

By design about four minutes: 14 s to begin with, the faults 95 s in all, each followed by at least
5.5 s and at most 11.5 s, and what waits to come out.
"""

import asyncio
import os
import random

import pytest
from run import Asked, run
from table import found_wrong

pytestmark = pytest.mark.kafka

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 2**31)
FAULTS = (
    "cut_connections,shake_groups,deny_results,refuse_large,fill_the_disk,lose_router"
    ",stop_router,restart_rolling,silence_pool,grow_partitions"
)


@pytest.mark.slow
async def test_faults_of_all_kinds_lose_and_double_nothing() -> None:
    print(f"CHAOS_SEED={SEED}")
    asked = Asked(SEED, rounds=1, rate=20, requests=0, only=FAULTS, calm_s_max=5, table=None)
    async with asyncio.timeout(300):
        seen = await run(asked)
    wrong = found_wrong(seen)
    assert not wrong, f"CHAOS_SEED={SEED}\n{wrong[:20]}"
    assert seen.ledger.statuses(seen.load)["completed"] > len(seen.load.published_at) / 2
