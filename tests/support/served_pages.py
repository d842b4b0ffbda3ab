"""Pages that a process of this machine serves as JSON."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any


async def asked(port: int, path: str) -> tuple[int, Any]:
    """Return status and content of a page. Raises OSError if nobody answers."""

    def ask() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as page:
                return page.status, json.loads(page.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    return await asyncio.to_thread(ask)
