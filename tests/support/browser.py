"""A Chromium without a window, where there is one on this machine, led as a person leads it."""

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from running_system import eventually

ENTER: dict[str, Any] = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
# The text of each cell of a table, by rows.
CELLS = """[...document.querySelectorAll("#%s tr")].map(
    (row) => [...row.cells].map((cell) => cell.textContent))"""


def chromium() -> str | None:
    """Return the program, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """A page, by the protocol of the browser's own developer tools."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (told := await self._socket.receive_json(timeout=30)).get("id") != number:
            pass
        assert "error" not in told, told
        return told["result"]

    async def evaluate(self, expression: str) -> Any:
        """Return what a script on the page finds."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until a script finds something true."""

        async def is_so() -> bool:
            return bool(await self.evaluate(expression))

        await eventually(is_so, expression)

    async def type(self, text: str) -> None:
        """Type where the focus is, and press Enter."""
        await self.call("Input.insertText", text=text)
        await self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **ENTER)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **ENTER)

    async def cells(self, table: str) -> list[list[str]]:
        """Return the text of a table, its heading first."""
        found: list[list[str]] = await self.evaluate(CELLS % table)
        return found


@contextlib.asynccontextmanager
async def browsing(program: str, url: str) -> AsyncIterator[Tab]:
    """Show a page in a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-sync"),
            *("--disable-component-update", f"--user-data-dir={profile}"),
            *("--remote-debugging-port=0", url),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(await address(session, Path(profile))) as socket,
            ):
                yield Tab(socket)
        finally:
            process.kill()
            await process.wait()


async def address(session: aiohttp.ClientSession, profile: Path) -> str:
    """Return where the tools of the page listen, once they do."""
    written = profile / "DevToolsActivePort"
    found: list[str] = []

    async def is_there() -> bool:
        with contextlib.suppress(OSError, IndexError, aiohttp.ClientError):
            port = written.read_text().splitlines()[0]
            async with session.get(f"http://127.0.0.1:{port}/json/list") as listed:
                pages = [p for p in await listed.json() if p["type"] == "page"]
            found[:] = [page["webSocketDebuggerUrl"] for page in pages]
        return bool(found)

    await eventually(is_there, "the browser has a page", 60)
    return found[0]
