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
        with urllib.request.urlopen(live, timeout=60) as response:  # noqa: S310  of this machine
            return json.load(response)["rows"]

    with contextlib.suppress(OSError):
        return list(await asyncio.to_thread(get))
    return None


async def until_the_ledger_follows(live: str) -> None:
    """Wait until it is ready: what ends from then on is counted. The page is there before."""

    def ask() -> bool:
        with urllib.request.urlopen(live.replace("/ledger", "/readyz"), timeout=60) as response:  # noqa: S310  of this machine
            return bool(response.status == 200)

    async def follows() -> bool:
        with contextlib.suppress(OSError):
            return await asyncio.to_thread(ask)
        return False

    await eventually(follows, "the ledger follows", 30)
