"""A short version of the long run (``run.py``): network, disk, rights, groups, partitions."""

import asyncio
import os
import random

import pytest
from run import Asked, found_wrong, run

pytestmark = pytest.mark.kafka

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 2**31)
FAULTS = (
    "cut_connections,shake_groups,deny_results,refuse_large,fill_the_disk,lose_router"
    ",grow_partitions"
)


async def test_faults_of_all_kinds_lose_and_double_nothing() -> None:
    print(f"CHAOS_SEED={SEED}")
    asked = Asked(seed=SEED, rounds=1, rate=40, requests=0, only=FAULTS, table=None)
    async with asyncio.timeout(400):
        seen = await run(asked)
    wrong = found_wrong(seen)
    assert not wrong, f"CHAOS_SEED={SEED}\n{wrong[:20]}"
    assert seen.ledger.statuses(seen.load)["completed"] > len(seen.load.published_at) / 2
