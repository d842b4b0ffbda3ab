"""Answers as streams of server-sent events: pieces as they come, and an end only if it is one."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from gateway.api.answers import body_of, placement_headers
from gateway.api.chunks import ChunkForm
from gateway.api.refusals import refusal_of
from gateway.api.responses_events import ResponseEvents
from gateway.api.runs import Run, give_up
from gateway.api.translation import Wanted
from gateway.exchange.mailbox import Mailbox
from gateway.http.errors import ApiError
from gateway.http.state import Gateway
from topics import Placement, Result, decode

# The pieces of a completed answer are in the log before its result; they are read by another
# reader, which may be a little behind.
PIECES_S_MAX = 2.0
# A client that takes nothing for so long is given up.
STALLED_S_MAX = 60.0
# A run that begins again so shortly before its deadline does so for lack of time.
LATE_S = 1.0


class _InterruptedError(Exception):
    """The stream can't come to its end."""


@dataclass(slots=True)
class _Progress:
    """The progress of a stream: the next piece's index, and how many there are if known."""

    next_index: int = 0
    count: int | None = None
    has_gap: bool = False
    result: Result | None = None
    out: list[bytes] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """True if the result and each piece are there."""
        return self.result is not None and not self.has_gap and self.next_index == self.count


class StreamedAnswer:
    """One answer, streamed to one client; ``heard`` is called for each piece that has come."""

    def __init__(
        self,
        gateway: Gateway,
        request: web.Request,
        run: Run,
        wanted: Wanted,
        box: Mailbox,
        heard: Callable[[], object],
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._run = run
        self._wanted = wanted
        self._box = box
        self._heard = heard
        form = ChunkForm if wanted.response is None else ResponseEvents
        self._form = form(run.request_id, wanted, gateway.clock.now())
        self._progress = _Progress()
        self._response: web.StreamResponse | None = None

    async def send(self, headers: dict[str, str]) -> web.StreamResponse:
        """Stream the answer; ``headers`` are added to those of the placement.

        Raises:
            ApiError: it failed before a piece of it was sent.
            ConnectionError: the client is gone.
        """
        self._headers = headers
        try:
            if self._run.result is None:
                result = await self._pieces()
            else:
                result = self._run.result
                self._progress.count = 0
            await self._end(result)
        except _InterruptedError as error:
            give_up(self._gateway, self._run)
            await self._await_deadline()
            await self._fail(ApiError(502, "stream_interrupted", str(error)))
        except ApiError as error:
            await self._fail(error)
        if self._response is None:
            raise AssertionError("a stream that failed before it began has raised")
        await self._response.write_eof()
        return self._response

    async def _pieces(self) -> Result:
        """Pass the pieces on as they come, until the result is there and each piece of it."""
        progress = self._progress
        if self._run.is_joined:
            before = await self._gateway.exchange.pieces(self._run.request_id, self._run.begun_at)
            self._box.put_before(before)
        while progress.result is None:
            piece, progress.result = await self._box.piece_or_result()
            if piece is not None:
                self._heard()
                await self._take(piece)
        if progress.result.status == "completed":
            try:
                async with asyncio.timeout(PIECES_S_MAX):
                    while not (progress.is_whole or progress.has_gap):
                        await self._take(await self._box.piece())
            except TimeoutError:
                progress.has_gap = True
        return progress.result

    async def _await_deadline(self) -> None:
        """Wait for a deadline that is about to pass: it is what ends the stream then."""
        deadline = self._wanted.deadline
        left_s = None if deadline is None else deadline - self._gateway.clock.now()
        if left_s is not None and left_s < LATE_S:
            # Whoever called ends this at the deadline.
            await asyncio.sleep(max(0.0, left_s) + LATE_S)

    async def _take(self, piece: dict[str, Any]) -> None:
        progress, index = self._progress, piece.get("index")
        if piece.get("result") is not None:
            # Of a transaction that may yet be aborted: only how many pieces there are counts.
            progress.count = index
            return
        if index == 0 and progress.next_index:
            raise _InterruptedError("the answer began again at another server; ask once more")
        if index != progress.next_index:
            progress.has_gap = True
        if progress.has_gap:
            return
        progress.next_index += 1
        if index == 0:
            told = piece.get("placement")
            placement = None if told is None else decode(Placement, orjson.dumps(told))
            await self._begin(placement)
        await self._write(self._form.events(piece.get("chunk")))

    async def _end(self, result: Result) -> None:
        if result.status != "completed":
            raise refusal_of(result, self._wanted, self._gateway.fleet)
        body = body_of(result)
        if self._response is None:
            await self._begin(result.placement)
            await self._write(self._form.whole(body))
        elif not self._progress.is_whole:
            rest = self._form.rest_of(body)
            if rest is None:
                raise _InterruptedError("pieces of the answer were lost; ask once more")
            await self._write(rest)
        await self._write(self._form.finish(body))
        await self._write(self._form.last(result))

    async def _begin(self, placement: Placement | None) -> None:
        headers = self._headers | placement_headers(placement)
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(self._request)
        self._response = response

    async def _write(self, events: Iterable[bytes]) -> None:
        data = b"".join(events)
        if not data or self._response is None:
            return
        try:
            async with asyncio.timeout(STALLED_S_MAX):
                await self._response.write(data)
        except TimeoutError as error:
            transport = self._request.transport
            if transport is not None:
                transport.abort()
            raise ConnectionResetError("the client takes nothing any more") from error

    async def _fail(self, error: ApiError) -> None:
        """Send an error as the last event; before the first piece it is the answer itself."""
        if self._response is None:
            raise error
        await self._write(self._form.failure(error))

    async def expire(self, error: ApiError) -> web.StreamResponse:
        """End the stream by an error that comes from outside of it. Raises ApiError likewise."""
        await self._fail(error)
        if self._response is None:
            raise error
        await self._response.write_eof()
        return self._response
