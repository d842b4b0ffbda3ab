"""What comes for one request: pieces of its stream, and its result."""

import asyncio
from collections import deque
from typing import Any

import orjson

from topics import Result, decode

# What a request may have waiting for a client that reads slowly, in bytes as they came.
WAITING_BYTES_MAX = 1024 * 1024


class Mailbox:
    """Takes what the reader finds for a request, and wakes whoever waits for it.

    It holds at most ``WAITING_BYTES_MAX`` of pieces: of a client that reads more slowly the rest is
    dropped, which harms nobody else, and the gap shows in the pieces' indices.
    """

    __slots__ = ("_pieces", "_result", "_waiting_bytes", "_woken", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._result: bytes | None = None
        self._woken = asyncio.Event()

    def put_piece(self, value: bytes) -> None:
        """Add a piece of the stream, as it stands on the streams topic."""
        if self._waiting_bytes + len(value) > WAITING_BYTES_MAX:
            return
        self._waiting_bytes += len(value)
        self._pieces.append(value)
        self._woken.set()

    def put_result(self, value: bytes) -> None:
        """Add the result, as it stands on the results topic; the first one stays."""
        if self._result is None:
            self._result = value
            self._woken.set()

    @property
    def has_result(self) -> bool:
        """Whether the result is there."""
        return self._result is not None

    async def piece_or_result(self) -> tuple[dict[str, Any] | None, Result | None]:
        """Wait for the next piece, as an object, or for the result once no piece is left.

        Raises:
            BadRecordError: the result can't be read.
        """
        while not self._pieces and self._result is None:
            self._woken.clear()
            await self._woken.wait()
        if self._pieces:
            return self._next(), None
        return None, await self.result()

    async def piece(self) -> dict[str, Any]:
        """Wait for the next piece, whether the result is there or not."""
        while not self._pieces:
            self._woken.clear()
            await self._woken.wait()
        return self._next()

    def _next(self) -> dict[str, Any]:
        value = self._pieces.popleft()
        self._waiting_bytes -= len(value)
        piece: dict[str, Any] = orjson.loads(value)
        return piece

    async def result(self) -> Result:
        """Wait for the result.

        Raises:
            BadRecordError: it can't be read.
        """
        while self._result is None:
            self._woken.clear()
            await self._woken.wait()
        return decode(Result, self._result)
