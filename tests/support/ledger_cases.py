"""A live ledger, looked at from outside."""

import asyncio
import contextlib
import json
import urllib.request
from typing import Any

from running_system import eventually


async def rows_of(live: str) -> list[Any] | None:
    """Return what is served, None while nothing is."""

    def get() -> Any:
        with urllib.request.urlopen(live, timeout=5) as response:  # noqa: S310  of this machine
            return json.load(response)["rows"]

    with contextlib.suppress(OSError):
        return list(await asyncio.to_thread(get))
    return None


async def until_the_ledger_follows(live: str) -> None:
    """Wait until the page is there: what ends from then on is counted."""

    async def follows() -> bool:
        return await rows_of(live) is not None

    await eventually(follows, "the ledger follows", 30)
