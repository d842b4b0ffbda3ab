"""A TCP proxy before the broker, which can cut, swallow or slow down what passes."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024


class Proxy:
    """Passes everything on from its port to another. Runs in a thread of its own."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._is_refusing = False
        self._delay_s = 0.0
        self._bytes_per_s = float("inf")

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection, and every new one, until ``heal``."""
        self._is_refusing = True
        self._do(self._cut())

    def swallow(self) -> None:
        """Pass nothing on and close nothing, until ``heal``."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def slow_down(self, delay_s: float, bytes_per_s: float) -> None:
        """Pass each piece on late, and each connection's pieces slowly, until ``heal``."""
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s

    def heal(self) -> None:
        """Pass everything on again."""
        self._is_refusing = False
        self.slow_down(0.0, float("inf"))
        self._loop.call_soon_threadsafe(self._passes.set)

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _start(self) -> None:
        self._passes.set()
        self._server = await asyncio.start_server(self._connected, HOST, self.port)

    async def _stop(self) -> None:
        self._server.close()
        await self._cut()
        passing = asyncio.all_tasks() - {asyncio.current_task()}
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        self._writers.add(writer)
        await self._passes.wait()
        try:
            target = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            self._close(writer)
            return
        self._writers.add(target[1])
        await asyncio.gather(self._pass_on(reader, target[1]), self._pass_on(target[0], writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s + len(chunk) / self._bytes_per_s)
                await self._passes.wait()
                writer.write(chunk)
                await writer.drain()
        # What is swallowed is the end of a connection, too.
        await self._passes.wait()
        self._close(writer)

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
