"""A sweep over a real model server: closed loops of several lengths and concurrencies, streamed."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from statistics import fmean
from typing import Any

import aiohttp
import orjson

from policies.config.fleet import OpenAIBackendConfig
from shunter.console import UserError
from workers.backends.base import BackendSettingError, CallError
from workers.backends.openai.server import OpenAIServer, read_body
from workers.backends.openai.sse import read_events

WORDS = ("river", "stone", "cloud", "lamp", "seven", "paper", "green", "often", "north", "music")
# By which the server's count of tokens of a word is found.
SAMPLE_WORDS = 64
REQUESTS_MIN, REQUESTS_PER_CLIENT = 4, 2
ANSWER_BYTES_MAX = 8 * 1024 * 1024
REFUSAL_BYTES_MAX = 64 * 1024
SEED = 20
# Of vLLM, SGLang and llama.cpp: replies as long as asked for.
_WHOLE_REPLIES = {"ignore_eos": True}
# How a completion is asked for, best first: a server may have chat alone, or know no such field.
_FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("completions", _WHOLE_REPLIES),
    ("chat/completions", _WHOLE_REPLIES),
    ("completions", {}),
    ("chat/completions", {}),
)
_NO_SUCH_FORM = frozenset({400, 404, 405, 422, 501})


class _RefusedError(UserError):
    """The server refuses a form of completions, and may take another."""


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A point of the sweep: prompts and replies of about these lengths, from so many clients."""

    input_tokens: int
    output_tokens: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point. ``lengths`` are those of its requests, in the order of sending; seconds."""

    asked: SweepPoint
    lengths: tuple[tuple[int, int], ...]
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class _Got:
    lengths: tuple[int, int]
    ttft_s: float
    tpot_s: float | None


@asynccontextmanager
async def connected(declared: OpenAIBackendConfig, connections: int) -> AsyncIterator[OpenAIServer]:
    """Yield a client of the server. Raises UserError where the key can't be read."""
    try:
        server = OpenAIServer("calibrate", declared, connections)
    except BackendSettingError as error:
        raise UserError(str(error)) from error
    await server.open()
    try:
        yield server
    finally:
        await server.close()


async def sweep(
    declared: OpenAIBackendConfig,
    served: str,
    asked: Sequence[SweepPoint],
    seconds_max: float,
    told: Callable[[Point], object],
) -> list[Point]:
    """Measure the points one after the other, as many as there is time for.

    Args:
        declared: the server.
        served: what it calls the model.
        asked: the points, those that matter most first.
        seconds_max: no point begins after this time.
        told: called with each measured point.

    Raises:
        UserError: the server can't be reached, or answers what is no completion.
    """
    began_at = time.monotonic()
    found: list[Point] = []
    connections = max(each.concurrency for each in asked)
    async with connected(declared, connections) as server:
        try:
            client = _Client(server, served, declared, connections)
            await client.warm_up()
            for each in asked:
                if time.monotonic() - began_at > seconds_max:
                    break
                found.append(await _measure(client, each))
                told(found[-1])
        except (CallError, TimeoutError) as error:
            message = str(error) or "it was silent for longer than is allowed"
            raise UserError(f"{declared.base_url}: {message}") from error
    return found


async def _measure(client: "_Client", asked: SweepPoint) -> Point:
    count = max(REQUESTS_MIN, REQUESTS_PER_CLIENT * asked.concurrency)
    numbers: Iterator[int] = iter(range(count))
    got: dict[int, _Got] = {}

    async def loop() -> None:
        for number in numbers:
            got[number] = await client.complete(asked.input_tokens, asked.output_tokens)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(asked.concurrency):
                group.create_task(loop())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    rows = [got[number] for number in range(count)]
    tpot = [row.tpot_s for row in rows if row.tpot_s is not None]
    return Point(
        asked,
        tuple(row.lengths for row in rows),
        fmean(row.ttft_s for row in rows),
        fmean(tpot) if tpot else 0.0,
    )


class _Client:
    """Completions of random words, which no cache has seen; lengths are the server's own count."""

    def __init__(
        self, server: OpenAIServer, served: str, declared: OpenAIBackendConfig, connections: int
    ) -> None:
        self._connections = connections
        self._server = server
        self._served = served
        self._declared = declared
        self._drawn = random.Random(SEED)  # noqa: S311 - words of a prompt
        self._tokens_per_word = 1.0
        self._path, self._more = _FORMS[0]

    async def warm_up(self) -> None:
        """Find the form that the server takes and the tokens of a word; let it load its model."""
        for form in _FORMS:
            self._path, self._more = form
            try:
                got = await self._tried(SAMPLE_WORDS, 2)
            except _RefusedError:
                if form is _FORMS[-1]:
                    raise
            else:
                self._tokens_per_word = got.lengths[0] / SAMPLE_WORDS
                return

    async def complete(self, input_tokens: int, output_tokens: int) -> _Got:
        """Run one request. Raises CallError, TimeoutError, UserError."""
        # Servers close connections that nothing came over for a while, maybe all that are kept.
        for _ in range(self._connections):
            try:
                return await self._tried(input_tokens, output_tokens)
            except CallError as error:
                if error.code != "connect":
                    raise
        return await self._tried(input_tokens, output_tokens)

    async def _tried(self, input_tokens: int, output_tokens: int) -> _Got:
        words = max(1, round(input_tokens / self._tokens_per_word))
        prompt = " ".join(self._drawn.choice(WORDS) for _ in range(words))
        is_chat = self._path != "completions"
        asks = (
            {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
        )
        body = {
            "model": self._served,
            **asks,
            **self._more,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent_at = time.perf_counter()
        first_at = last_at = None
        pieces, usage = 0, None
        async with asyncio.timeout(self._declared.first_token_s_max):
            async with self._server.post(self._path, body) as response:
                if response.status != HTTPStatus.OK:
                    is_form = response.status in _NO_SUCH_FORM
                    told = await self._why_not(response)
                    raise _RefusedError(told) if is_form else UserError(told)
                async for chunk in _chunks(response):
                    if _text_of(chunk):
                        last_at = time.perf_counter()
                        first_at = first_at or last_at
                        pieces += 1
                    usage = chunk.get("usage") or usage
        if first_at is None or last_at is None:
            raise UserError(f"{self._declared.base_url}: the answer has no token")
        counted = usage if isinstance(usage, dict) else {}
        read = int(counted.get("prompt_tokens") or words)
        reply = int(counted.get("completion_tokens") or pieces)
        tpot_s = (last_at - first_at) / (reply - 1) if reply > 1 else None
        return _Got((read, reply), first_at - sent_at, tpot_s)

    async def _why_not(self, response: aiohttp.ClientResponse) -> str:
        told = (await read_body(response, REFUSAL_BYTES_MAX)).decode(errors="replace").strip()
        advice = ""
        if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
            advice = "; begin again once it has loaded its model"
        return f"{self._declared.base_url}: answers {response.status}: {told[:200]}{advice}"


def _text_of(chunk: dict[str, Any]) -> Any:
    """Return what a piece of a stream adds to a completion or a chat, thoughts included."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        return choice.get("text") or delta.get("content") or delta.get("reasoning_content")
    return None


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for data in read_events(response.content.iter_any(), ANSWER_BYTES_MAX):
        if data == b"[DONE]":
            # With the end of the body read, too, the connection can be used again.
            continue
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise UserError("the server streams what is no JSON") from error
        if isinstance(chunk, dict):
            yield chunk
