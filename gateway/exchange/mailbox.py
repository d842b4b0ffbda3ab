"""All that comes for one request: pieces of its stream, and its result."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from topics import QuoteAnswer, Result, decode

# What a request may have waiting for a client that reads slowly, in bytes as they came.
WAITING_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PiecesBefore:
    """The pieces of a run that the log had when it was asked, and the offset where it ended then.

    They are those since the run has begun for the last time.
    """

    values: list[bytes]
    end: int


class Mailbox:
    """Takes what the reader finds for a request, and wakes whoever waits for it.

    It holds at most ``WAITING_BYTES_MAX`` of pieces: of a client that reads more slowly the rest is
    dropped, which harms nobody else, and the gap shows in the pieces' indices.
    """

    __slots__ = (
        "_before",
        "_first",
        "_pieces",
        "_quote",
        "_result",
        "_waiting_bytes",
        "_woken",
        "request_id",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._before: deque[bytes] = deque()
        self._first = 0
        self._waiting_bytes = 0
        self._result: bytes | None = None
        self._quote: bytes | None = None
        self._woken = asyncio.Event()

    def put_piece(self, value: bytes, offset: int) -> None:
        """Add a piece of the stream, as it stands at an offset of the streams topic."""
        if offset < self._first or self._waiting_bytes + len(value) > WAITING_BYTES_MAX:
            return
        self._waiting_bytes += len(value)
        self._pieces.append((offset, value))
        self._woken.set()

    def put_before(self, before: PiecesBefore) -> None:
        """Add pieces of before this box was opened; what came meanwhile is not taken twice."""
        self._first = before.end
        self._before.extend(before.values)
        self._pieces = deque(piece for piece in self._pieces if piece[0] >= before.end)
        self._waiting_bytes = sum(len(value) for _, value in self._pieces)
        self._woken.set()

    def put_result(self, value: bytes) -> None:
        """Add the result, as it stands on the results topic; the first one stays."""
        if self._result is None:
            self._result = value
            self._woken.set()

    def put_quote(self, value: bytes) -> None:
        """Add the answer to a question what the request would cost."""
        self._quote = value
        self._woken.set()

    async def quote(self) -> QuoteAnswer:
        """Wait for that answer.

        Raises:
            BadRecordError: it can't be read.
        """
        return decode(QuoteAnswer, await self._when(lambda: self._quote))

    @property
    def has_result(self) -> bool:
        """True if the result is there."""
        return self._result is not None

    async def piece_or_result(self) -> tuple[dict[str, Any] | None, Result | None]:
        """Wait for the next piece, as an object, or for the result once no piece is left.

        Raises:
            BadRecordError: the result can't be read.
        """
        while not self._has_piece and self._result is None:
            self._woken.clear()
            await self._woken.wait()
        if self._has_piece:
            return self._next(), None
        return None, await self.result()

    async def piece(self) -> dict[str, Any]:
        """Wait for the next piece, whether the result is there or not."""
        while not self._has_piece:
            self._woken.clear()
            await self._woken.wait()
        return self._next()

    @property
    def _has_piece(self) -> bool:
        return bool(self._before or self._pieces)

    def _next(self) -> dict[str, Any]:
        if self._before:
            value = self._before.popleft()
        else:
            _, value = self._pieces.popleft()
            self._waiting_bytes -= len(value)
        piece: dict[str, Any] = orjson.loads(value)
        return piece

    async def result(self) -> Result:
        """Wait for the result.

        Raises:
            BadRecordError: it can't be read.
        """
        return decode(Result, await self._when(lambda: self._result))

    async def _when(self, value: Callable[[], bytes | None]) -> bytes:
        """Wait until a value is there, and return it."""
        while (found := value()) is None:
            self._woken.clear()
            await self._woken.wait()
        return found
