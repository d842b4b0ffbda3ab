"""The backend for model servers with the OpenAI API: vLLM, SGLang, TGI, llama.cpp, a vendor's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson

from policies import Option
from policies.config.fleet import OpenAIBackendConfig as Declared
from policies.hardware.accelerator import Job
from policies.hardware.device_time import DeviceShare
from policies.learning.device_constants import Measured
from policies.learning.device_speed import NEWEST, Pace, shared_by
from streams.engine.clock import Clock
from topics import Response, VariantStatus
from topics.wire.codec import JSON_DEPTH_MAX
from workers.backends.base import Call, CallError, Load, Outcome
from workers.backends.error_log import ErrorLog
from workers.backends.openai.answers import Assembled, bad_answer, tokens_by_text, usage_of
from workers.backends.openai.errors import classify
from workers.backends.openai.server import OpenAIServer, read_body
from workers.backends.openai.server_metrics import ServerMetrics
from workers.backends.openai.sse import read_events

# What is kept of an error's body, which the client may see.
ERROR_BYTES_MAX = 64 * 1024
# How long it is waited for: its status, and when to come again, are known without.
ERROR_S_MAX = 1.0
# Levels that an answer may nest, which leaves some of what orjson writes for the result around it.
DEPTH_MAX = 240
PATHS = {
    "chat": "chat/completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "moderations": "moderations",
}
# The end of a body follows the last event at once, or need not be waited for.
END_S_MAX = 0.1
# Errors of a server that has not begun with the request.
NEVER_RAN = frozenset({"connect", "overloaded", "unavailable"})
_ANSWERED_IN = {
    "chat": "choices",
    "completions": "choices",
    "embeddings": "data",
    "moderations": "results",
}
_STREAMED = {"chat": "chat.completion", "completions": "text_completion"}
_DONE = b"[DONE]"
# The least that shows that a model answers.
PROBES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1},
    "completions": {"prompt": "1", "max_tokens": 1},
    "embeddings": {"input": "1"},
    "moderations": {"input": "1"},
}


@dataclass(slots=True)
class _Answer:
    body: dict[str, Any]
    output_tokens: int
    """As counted here: pieces of a stream, a token each with most servers; else by the text."""
    first_token_at: float | None = None


class OpenAIBackend:
    """Runs calls at a server; always streams from it, to measure tokens as they come.

    Raises:
        BackendSettingError: the key or the authorities can't be read.
    """

    def __init__(self, declared: Declared, options: Sequence[Option], clock: Clock) -> None:
        slots = sum(o.max_batch * o.replicas for o in options)
        self._declared = declared
        self._options = {option.variant: option for option in options}
        self._clock = clock
        # One more, so that a probe finds a connection when all slots are taken.
        self._server = OpenAIServer(options[0].pool, declared, slots + 1)
        self._metrics = ServerMetrics(declared, self._server)
        self._shares = DeviceShare(options[0].replicas)
        self._shares_of = {option.variant: DeviceShare(option.replicas) for option in options}
        # Answers of each, of so many calls.
        self._running = dict.fromkeys(self._options, 0)
        self._calls = 0
        self._pace = Pace()
        # The predicted time of each prompt that has no first token yet, by the call's identity.
        self._prompts: dict[int, float] = {}
        self._each_s = 0.0
        self._error_log = ErrorLog(options[0].pool)

    async def start(self) -> None:
        """Create the connection pool and begin to read the server's metrics."""
        self._loop = asyncio.get_running_loop()
        await self._server.open()
        self._metrics.start()

    async def stop(self) -> None:
        """Close every connection; running calls are aborted."""
        await self._metrics.stop()
        await self._server.close()

    async def probe(self, variant: str) -> None:
        """Request one token, or another output of the model. Raises CallError."""
        operations = self._options[variant].operations
        operation = next(name for name in PATHS if name in operations)
        body = PROBES[operation] | {"model": self._served(variant)}
        with self._distrusting():
            async with self._server.post(PATHS[operation], body) as response:
                await self._json(response)

    async def execute(self, call: Call) -> Outcome:
        """Run one request at the server. Raises CallError."""
        variant, operation = call.placement.model_variant, call.profile.operation
        profile, answers = call.profile, call.profile.answers
        if operation not in PATHS:
            message = f"a server of this kind has no {operation!r}"
            raise CallError("operation_not_served", message, retry="elsewhere")
        option = self._options[variant]
        ahead_s = sum(self._prompts.values()) / option.replicas
        others_s = sum(
            self._pace.step_s(other, -(-self._running[name] // other.replicas))
            for name, other in self._options.items()
            if name != variant
        )
        self._running[variant] += answers
        prompt_s = self._pace.prefill_s(option, profile.prompt_tokens)
        self._prompts[id(call)] = profile.prompts * prompt_s
        self._calls += 1
        began_at, device_s, among_its_own_s = self._loop.time(), 0.0, 0.0
        mark = self._shares.begin(began_at, answers)
        own_mark = self._shares_of[variant].begin(began_at, answers)
        started_at = self._clock.now()
        answer: _Answer | None = None
        has_run = True
        try:
            with self._distrusting():
                answer = await self._ask(call)
        except CallError as error:
            has_run = error.code not in NEVER_RAN
            raise
        finally:
            self._calls -= 1
            self._running[variant] -= answers
            self._prompts.pop(id(call), None)
            ended_at = self._loop.time()
            # All its answers are on one replica.
            device_s = min(ended_at - began_at, self._shares.end(mark, ended_at, answers))
            among_its_own_s = self._shares_of[variant].end(own_mark, ended_at, answers)
            if answer is None and has_run:
                call.meter.add(device_s)
        finished_at = self._clock.now()
        usage = usage_of(
            answer.body,
            input_tokens=call.profile.input_tokens,
            output_tokens=answer.output_tokens,
        )
        input_tokens = max(1, usage.input_tokens)
        cached_tokens = min(usage.cached_tokens, input_tokens)
        job = Job("", variant, input_tokens, usage.output_tokens, cached_tokens)
        sequences = shared_by(ended_at - began_at, among_its_own_s)
        first_at = answer.first_token_at
        took = Measured(
            None if first_at is None else first_at - started_at,
            finished_at - started_at,
            sequences,
            ahead_s,
            others_s,
        )
        if answers == 1:
            self._pace.learn(option, job, took, device_s)
        self._each_s += (device_s / answers - self._each_s) * NEWEST
        return Outcome(
            Response(200, answer.body),
            usage,
            started_at,
            answer.first_token_at,
            finished_at,
            device_s,
        )

    def load(self) -> Load:
        """Return the load of this worker's calls and the server's own report."""
        variants = {
            variant: VariantStatus(
                running=running,
                speed=self._pace.speed(variant),
                speed_known=self._pace.known(variant),
            )
            for variant, running in self._running.items()
        }
        server = self._metrics.load
        queued = 0 if server is None else server.queued or 0
        # Its queue holds what other clients sent besides, which a router knows nothing of.
        replicas = next(iter(self._options.values())).replicas
        backlog_s = queued * self._each_s / replicas
        # Servers behind one address are taken to spread what they get.
        idle = max(0, replicas - self._calls)
        return Load(backlog_s, variants, server, self._pace.factors, self._pace.factors_known, idle)

    @contextlib.contextmanager
    def _distrusting(self) -> Iterator[None]:
        """Turn any unexpected error of an answer into a bad-answer error."""
        try:
            yield
        except (CallError, TimeoutError):
            raise
        except Exception as error:
            self._error_log.tell(error)
            raise bad_answer(f"{type(error).__name__} while it was read") from error

    async def _ask(self, call: Call) -> _Answer:
        operation = call.profile.operation
        is_streamed = self._declared.stream and operation in _STREAMED
        body = call.request.body | {"model": self._served(call.placement.model_variant)}
        body.pop("stream", None)
        body.pop("stream_options", None)
        if self._declared.priority is not None:
            # In place of what a client may have put there.
            is_lower_first = self._declared.priority == "lower_first"
            body["priority"] = -call.urgency if is_lower_first else call.urgency
        if is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with (
                asyncio.timeout(self._declared.first_token_s_max) as limit,
                self._server.post(PATHS[operation], body, call.context) as response,
            ):
                if is_streamed and response.content_type == "text/event-stream":
                    await self._refuse_unless_good(response)
                    return await self._read_stream(call, response, limit)
                body = await self._json(response)
                if not isinstance(body.get(_ANSWERED_IN[operation]), list):
                    self._raise_error_of(body)
                    raise bad_answer(f"it has no {_ANSWERED_IN[operation]}")
                return _Answer(body, tokens_by_text(body))
        except TimeoutError as error:
            message = "the server was silent for longer than its pool allows"
            raise CallError("timeout", message, retry="elsewhere", is_pool_fault=True) from error

    async def _read_stream(
        self, call: Call, response: aiohttp.ClientResponse, limit: asyncio.Timeout
    ) -> _Answer:
        object_name, asked = _STREAMED[call.profile.operation], call.request
        assembled = Assembled(object_name, asked.choices, call.profile.prompts)
        first_token_at = None
        try:
            async for chunk in self._chunks(response, assembled):
                # llama.cpp begins the stream of several prompts with one.
                if chunk is None:
                    continue
                if assembled.add(chunk):
                    if first_token_at is None:
                        first_token_at = self._clock.now()
                        self._prompts.pop(id(call), None)
                    # Only what brings the answer on counts as a sign of life.
                    limit.reschedule(self._loop.time() + self._declared.idle_s_max)
                    if call.tell is not None:
                        await call.tell(_checked(chunk))
            return _Answer(_checked(assembled.body()), assembled.chunks, first_token_at)
        except BaseException:
            if assembled.chunks:
                call.meter.add(0.0, call.profile.input_tokens, assembled.chunks)
            raise

    async def _chunks(
        self, response: aiohttp.ClientResponse, assembled: Assembled
    ) -> AsyncIterator[Any]:
        pieces = response.content.iter_any()
        async for data in read_events(pieces, self._declared.answer_bytes_max):
            if data == _DONE:
                assembled.is_told_whole = True
                # With the end of the body read, too, the connection can be used again. Without,
                # the answer is whole nevertheless.
                with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                    async with asyncio.timeout(END_S_MAX):
                        await response.content.readany()
                return
            chunk = _parsed(data)
            self._raise_error_of(chunk)
            yield chunk

    def _raise_error_of(self, chunk: Any) -> None:
        """Raise the error that a server reports with status 200, in newer or older vLLM's form."""
        if not isinstance(chunk, dict):
            return
        error = chunk if chunk.get("object") == "error" else chunk.get("error")
        if error:
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise classify(status, _checked(chunk), {}, self._clock.now())

    async def _json(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """Return an answer that is not streamed. Raises CallError."""
        await self._refuse_unless_good(response)
        body = _parsed(await read_body(response, self._declared.answer_bytes_max))
        if not isinstance(body, dict):
            raise bad_answer("it is no JSON object")
        _checked(body)
        return body

    async def _refuse_unless_good(self, response: aiohttp.ClientResponse) -> None:
        if response.status == HTTPStatus.OK:
            return
        body = None
        # What an error says is worth knowing, but not worth another failure.
        with contextlib.suppress(CallError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(ERROR_S_MAX):
                body = _checked(_parsed(await read_body(response, ERROR_BYTES_MAX)))
        raise classify(response.status, body, response.headers, self._clock.now())

    def _served(self, variant: str) -> str:
        return self._declared.served_name.get(variant, variant)


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise bad_answer("it is no JSON") from error


def _checked(body: Any) -> Any:
    """Return a body that a result can hold. Raises CallError."""
    nested = body
    for _ in range(JSON_DEPTH_MAX - DEPTH_MAX):
        nested = [nested]
    try:
        orjson.dumps(nested)
    except orjson.JSONEncodeError as error:
        raise bad_answer("it can't be written again") from error
    return body
