"""A live ledger, looked at from outside."""

import asyncio
import contextlib
import itertools
import json
import urllib.request
from typing import Any

from running_system import System, chat, eventually

# The class of what is published before a load.
PROBES = "agent_step"


async def rows_of(live: str) -> list[Any]:
    def get() -> Any:
        with urllib.request.urlopen(live, timeout=5) as response:  # noqa: S310  of this machine
            return json.load(response)["rows"]

    with contextlib.suppress(OSError):
        return list(await asyncio.to_thread(get))
    return []


async def until_the_ledger_follows(system: System, live: str) -> None:
    """Publish what nobody serves until it shows: the ledger begins with what comes then."""
    numbers = itertools.count()

    async def follows() -> bool:
        for _ in range(8):
            nowhere = {"regions": ["moon"]}
            probe = chat(f"probe-{next(numbers)}", task=PROBES, constraints=nowhere)
            await system.publish(probe)
        await asyncio.sleep(0.3)
        return bool(await rows_of(live))

    await eventually(follows, "the ledger follows", 30)
