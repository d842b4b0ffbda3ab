"""A model server on a real socket that does as the test says, well or badly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
WORDS = ("one ", "two ", "three")


@dataclass
class Exchange:
    """One request as it came, and the wire to answer on."""

    path: str
    headers: dict[str, str]
    body: Any
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def json(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content_Type": "application/json", "Content_Length": str(len(data))} | headers
        await self.head(status, **headers)
        await self.send(data)

    async def events(self) -> None:
        await self.head(Content_Type="text/event-stream", Transfer_Encoding="chunked")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, data: Any) -> None:
        text = data if isinstance(data, bytes) else orjson.dumps(data)
        await self.chunk(b"data: " + text + b"\n\n")

    async def end(self) -> None:
        await self.event(b"[DONE]")
        await self.chunk(b"")

    def piece(self, text: str | None, finish: str | None = None) -> dict[str, Any]:
        """A chunk of the stream, chat or text as the path says."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if "chat" in self.path:
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return {"id": "x-1", "created": 1, "model": self.body["model"], "choices": [choice]}


Behaviour = Callable[[Exchange], Awaitable[None]]


async def good(x: Exchange) -> None:
    """Answer as a well server does, streaming where that is asked for."""
    if not (isinstance(x.body, dict) and x.body.get("stream")):
        answer: dict[str, Any] = {"object": "list", "usage": {"prompt_tokens": 7}}
        answer |= {"data": [{"embedding": [0.5]}], "results": [{"flagged": False}]}
        await x.json(answer)
        return
    await x.events()
    for word in WORDS:
        await x.event(x.piece(word))
    await x.event(x.piece(None, "stop"))
    await x.event({"choices": [], "usage": USAGE})
    await x.end()


@dataclass
class ModelServer:
    """Listens on a free port of 127.0.0.1."""

    behave: Behaviour = good
    seen: list[Exchange] = field(default_factory=list)
    open_now: int = 0
    port: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[Exchange]:
        """What was asked of its models."""
        return [exchange for exchange in self.seen if exchange.body is not None]

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def listen(self) -> None:
        """Listen, where it did before if it did."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[Any]] = set()

    async def vanish(self) -> None:
        """Be gone at once: connections are reset and new ones refused."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aexit__(self, *_: object) -> None:
        await self.vanish()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open_now += 1
        try:
            while (exchange := await _read(reader, writer)) is not None:
                self.seen.append(exchange)
                gone = asyncio.create_task(_until_gone(reader))
                answering = asyncio.ensure_future(self.behave(exchange))
                try:
                    await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in (gone, answering):
                        each.cancel()
                    await asyncio.gather(gone, answering, return_exceptions=True)
                if writer.is_closing() or reader.at_eof():
                    return
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            self.open_now -= 1
            self._tasks.discard(task)
            writer.transport.abort()


async def _until_gone(reader: asyncio.StreamReader) -> None:
    """Wait until the client closes; nothing else comes before it has its answer."""
    while not reader.at_eof():  # noqa: ASYNC110 - reading would take what comes next
        await asyncio.sleep(0.01)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    length = int(headers.get("Content-Length", 0))
    data = await reader.readexactly(length) if length else b""
    return Exchange(first.split(" ")[1], headers, orjson.loads(data) if data else None, writer)


@contextlib.asynccontextmanager
async def serving(behave: Behaviour = good) -> AsyncIterator[ModelServer]:
    async with ModelServer(behave) as server:
        yield server
