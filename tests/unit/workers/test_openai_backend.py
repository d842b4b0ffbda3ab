"""The backend for model servers, against a well-behaved server on a real socket."""

import asyncio
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from model_server import USAGE, WORDS, Exchange, ModelServer, good, serving
from openai_cases import FLEET, PATHS, backend_at, call
from running_system import eventually
from typer.testing import CliRunner

from shunter.cli import app
from shunter.console import UserError
from streams.engine.trace_context import Context
from topics import Usage
from workers.backends.base import BackendSettingError, CallError


@pytest.mark.parametrize(
    ("operation", "kind"), [("chat", "chat.completion"), ("completions", "text_completion")]
)
async def test_an_answer_is_streamed_and_put_together_again(operation: str, kind: str) -> None:
    async def slow(x: Exchange) -> None:
        await x.events()
        await asyncio.sleep(0.05)
        await x.event(x.piece(WORDS[0]))
        await asyncio.sleep(0.05)
        await x.event(x.piece(WORDS[1]))
        await x.event(x.piece(WORDS[2]))
        await x.event(x.piece(None, "stop"))
        await x.event({"choices": [], "usage": USAGE})
        await x.end()

    told: list[dict[str, Any]] = []

    async def tell(chunk: dict[str, Any]) -> None:
        told.append(chunk)

    async with serving(slow) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call(operation, tell=tell, max_tokens=9))
    (exchange,) = server.asked
    assert exchange.path == PATHS[operation]
    assert exchange.body["stream"] is True
    assert exchange.body["stream_options"] == {"include_usage": True}
    assert (exchange.body["model"], exchange.body["max_tokens"]) == ("small-bf16", 9)
    body = outcome.response.body
    assert (body["object"], body["id"], body["usage"]) == (kind, "x-1", USAGE)
    (choice,) = body["choices"]
    text = choice["message"]["content"] if operation == "chat" else choice["text"]
    assert (text, choice["finish_reason"]) == ("one two three", "stop")
    assert outcome.usage == Usage(7, 3)
    assert outcome.first_token_at is not None
    assert outcome.first_token_at - outcome.started_at > 0.04
    assert outcome.finished_at - outcome.first_token_at > 0.04
    assert outcome.device_s == pytest.approx(outcome.finished_at - outcome.started_at, abs=0.1)
    assert len(told) == 3


def choice_chunk(index: int, text: str, used: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return a chunk of a text as llama.cpp has it: the last of a choice has its usage."""
    finish = None if used is None else "length"
    chunk: dict[str, Any] = {"choices": [{"index": index, "text": text, "finish_reason": finish}]}
    return chunk if used is None else chunk | {"usage": usage_told(*used)}


def usage_told(read: int, made: int) -> dict[str, Any]:
    told = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
    return told | {"prompt_tokens_details": {"cached_tokens": 1}}


async def test_several_prompts_of_a_text_have_the_usage_of_all() -> None:
    async def as_llama_cpp_does(x: Exchange) -> None:
        await x.events()
        await x.event(b"null")
        for index in (1, 0, 3, 2):
            await x.event(choice_chunk(index, f"choice {index}"))
            await x.event(choice_chunk(index, "", (3 if index < 2 else 5, 4)))
        await x.end()

    async with serving(as_llama_cpp_does) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call("completions", prompt=["a b", "c d e f"], n=2))
    body = outcome.response.body
    assert [choice["text"] for choice in body["choices"]] == [f"choice {n}" for n in range(4)]
    assert outcome.usage == Usage(8, 16, 2)
    assert body["usage"]["total_tokens"] == 24


@pytest.mark.parametrize(("told", "used"), [(1, Usage(7, 9)), (2, Usage(7, 6))])
async def test_choices_of_a_chat_have_the_usage_of_all(told: int, used: Usage) -> None:
    async def chatting(x: Exchange) -> None:
        await x.events()
        for index in (0, 1):
            choice = {"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}
            await x.event({"choices": [choice]})
            if index < told - 1 or index == 1:
                usage = USAGE if told == 2 else USAGE | {"completion_tokens": 9}
                await x.event({"choices": [], "usage": usage})
        await x.end()

    async with serving(chatting) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call(n=2))
    assert outcome.usage == used


@pytest.mark.parametrize("n", [1, 2, "2", 2.0])
async def test_a_stream_has_as_many_choices_as_were_asked_for(n: Any) -> None:
    prompts = ["a"] * 150

    async def many(x: Exchange) -> None:
        await x.events()
        for index in range(150 * int(n)):
            await x.event(choice_chunk(index, f"choice {index}", (2, 3)))
        await x.end()

    async with serving(many) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call("completions", prompt=prompts, n=n))
        assert len(outcome.response.body["choices"]) == 150 * int(n)
        assert outcome.usage == Usage(300, 450 * int(n), 150)
        with pytest.raises(CallError) as refused:
            await backend.execute(call("completions", prompt="a", n=n))
    assert refused.value.code == "bad_answer"


async def test_tool_calls_and_choices_are_put_together_by_index() -> None:
    def delta(index: int, finish: str | None = None, **fields: Any) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}

    async def calling(x: Exchange) -> None:
        await x.events()
        function = {"name": "shunt", "arguments": '{"tr'}
        first = {"index": 0, "id": "c-1", "type": "function", "function": function}
        await x.event(delta(0, role="assistant", content=None, tool_calls=[first]))
        await x.event(delta(1, role="assistant", content="no "))
        more = {"index": 0, "function": {"arguments": 'ack": 4}'}}
        await x.event(delta(0, tool_calls=[more]))
        await x.event(delta(1, "stop", content="call"))
        await x.event(delta(0, "tool_calls"))
        await x.end()

    async with serving(calling) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call(n=2))
    one, two = outcome.response.body["choices"]
    (tool,) = one["message"]["tool_calls"]
    assert tool["function"] == {"name": "shunt", "arguments": '{"track": 4}'}
    assert (tool["id"], tool["type"], one["finish_reason"]) == ("c-1", "function", "tool_calls")
    assert two["message"] == {"role": "assistant", "content": "no call"}
    # Its own usage is not told, so the pieces of text are counted.
    assert outcome.usage.output_tokens == 4


@pytest.mark.parametrize("operation", ["embeddings", "moderations"])
async def test_what_can_not_be_streamed_is_asked_for_as_it_is(operation: str) -> None:
    async with serving() as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call(operation))
    (exchange,) = server.asked
    assert exchange.path == PATHS[operation]
    assert "stream" not in exchange.body
    assert outcome.response.body["object"] == "list"
    assert (outcome.usage.input_tokens, outcome.first_token_at) == (7, None)


async def test_a_server_that_does_not_stream_is_taken_as_it_is() -> None:
    async def plain(x: Exchange) -> None:
        choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
        await x.json({"object": "chat.completion", "choices": [choice], "usage": USAGE})

    async with serving(plain) as server, backend_at(server.base_url) as backend:
        assert (await backend.execute(call())).usage == Usage(7, 3)
    async with serving(plain) as server, backend_at(server.base_url, stream=False) as backend:
        await backend.execute(call())
        assert "stream" not in server.asked[0].body


MESSAGE = {"role": "assistant", "content": "hi there"}
TOOL = {"id": "c-1", "type": "function", "function": {"name": "shunt", "arguments": '{"to": 4}'}}


@pytest.mark.parametrize(
    ("operation", "choices", "tokens"),
    [
        ("chat", [{"index": 0, "message": MESSAGE}], 2),
        ("chat", [{"message": MESSAGE}, {"message": MESSAGE | {"content": "x"}}], 3),
        ("chat", [{"message": MESSAGE | {"content": None, "tool_calls": [TOOL]}}], 3),
        ("chat", [{"message": MESSAGE | {"reasoning_content": "well, so"}}], 4),
        ("completions", [{"index": 0, "text": "hi there, you"}], 4),
        ("chat", [None, {"message": 5}, {"message": {"content": [1], "tool_calls": {}}}], 0),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_that_the_server_does_not_tell_are_counted_from_the_text(
    operation: str, choices: list[Any], tokens: int, stream: bool
) -> None:
    async def plain(x: Exchange) -> None:
        await x.json({"choices": choices, "usage": {"prompt_tokens": 7}})

    async with serving(plain) as server, backend_at(server.base_url, stream=stream) as backend:
        outcome = await backend.execute(call(operation))
    assert outcome.usage == Usage(7, tokens)


async def test_cached_tokens_are_told() -> None:
    async def cached(x: Exchange) -> None:
        usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 5}}
        await x.json({"choices": [], "usage": usage})

    async with serving(cached) as server, backend_at(server.base_url) as backend:
        assert (await backend.execute(call())).usage == Usage(7, 3, 5)


async def test_a_server_that_traces_gets_the_context_of_the_lane() -> None:
    context = Context(0xA1, 0xB2, is_sampled=True)
    async with serving() as server, backend_at(server.base_url) as backend:
        for given in (context, None, context._replace(span_id=0)):
            await backend.execute(replace(call(), context=given))
    seen = [exchange.headers.get("traceparent") for exchange in server.asked]
    assert seen == [f"00-{0xA1:032x}-{0xB2:016x}-01", None, None]


async def test_a_key_of_the_environment_and_the_served_name_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("YARD_KEY", "sk-secret\n")
    declared = {"api_key_env": "YARD_KEY", "served_name": {"small-bf16": "/models/small.gguf"}}
    async with serving() as server, backend_at(server.base_url, **declared) as backend:
        await backend.execute(call())
        await backend.probe("small-bf16")
    for exchange in server.seen:
        if exchange.body is not None:
            assert exchange.headers["Authorization"] == "Bearer sk-secret"
            assert exchange.body["model"] == "/models/small.gguf"
        else:
            assert (exchange.path, "Authorization" in exchange.headers) == ("/metrics", False)


@pytest.mark.parametrize("value", [None, "", "two\nlines"])
async def test_a_key_that_is_missing_or_none_is_told_at_start(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YARD_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("YARD_KEY", value)
    with pytest.raises(BackendSettingError, match=r"pools\.here\.backend\.api_key_env.*YARD_KEY"):
        async with backend_at("http://127.0.0.1:1/v1", api_key_env="YARD_KEY"):
            pass


def test_the_command_tells_what_is_missing_before_it_looks_for_kafka(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YARD_KEY", raising=False)
    backend = "    backend: {type: openai, base_url: 'https://x.test/v1', api_key_env: YARD_KEY}\n"
    (tmp_path / "fleet.yaml").write_text(FLEET + backend)
    outcome = CliRunner().invoke(app, ["worker", "here", "--fleet", str(tmp_path / "fleet.yaml")])
    assert isinstance(outcome.exception, UserError)
    assert "the environment variable YARD_KEY is not set" in str(outcome.exception)


async def test_authorities_that_can_not_be_read_are_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(BackendSettingError, match="ca_file"):
        async with backend_at("https://127.0.0.1:1/v1", ca_file=str(tmp_path / "none.pem")):
            pass


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Return the files of a key and of a certificate for 127.0.0.1."""
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return key, certificate


async def test_a_certificate_is_checked(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    plain = ModelServer(good)
    server = await asyncio.start_server(plain._serve, "127.0.0.1", 0, ssl=context)
    plain._tasks = set()
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with backend_at(url) as backend:
        with pytest.raises(CallError) as caught:
            await backend.execute(call())
    assert (caught.value.code, caught.value.retry) == ("tls", "elsewhere")
    assert not plain.seen
    async with backend_at(url, ca_file=str(certificate)) as backend:
        assert (await backend.execute(call())).response.status_code == 200
    server.close()


async def test_connections_are_used_again() -> None:
    peers: set[Any] = set()

    async def noting(x: Exchange) -> None:
        peers.add(x.writer.get_extra_info("peername"))
        await good(x)

    async with serving(noting) as server, backend_at(server.base_url) as backend:
        for _ in range(5):
            await backend.execute(call())
        # One more may be that of the metrics.
        assert len(peers) <= 2


async def test_a_cancelled_call_closes_its_stream() -> None:
    began = asyncio.Event()

    async def endless(x: Exchange) -> None:
        await x.events()
        while True:
            await x.event(x.piece("more "))
            began.set()
            await asyncio.sleep(0.01)

    async with serving(endless) as server, backend_at(server.base_url) as backend:
        running = asyncio.create_task(backend.execute(call()))
        await began.wait()
        assert backend.load().idle_replicas == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

        async def closed() -> bool:
            return all(exchange.writer.is_closing() for exchange in server.asked)

        await eventually(closed, "the server sees the stream closed")
        assert backend.load().variants["small-bf16"].running == 0
        assert backend.load().idle_replicas == 1


async def test_speed_and_shares_of_device_time_are_measured() -> None:
    async def slow(x: Exchange) -> None:
        await asyncio.sleep(0.2)
        await good(x)

    async with serving(slow) as server, backend_at(server.base_url) as backend:
        outcomes = await asyncio.gather(*(backend.execute(call()) for _ in range(4)))
        # Each had a quarter of the time, more or less, and all together no more than there was.
        wall_s = max(o.finished_at for o in outcomes) - min(o.started_at for o in outcomes)
        assert sum(o.device_s for o in outcomes) == pytest.approx(wall_s, rel=0.2, abs=0.1)
        assert backend.load().variants["small-bf16"].speed != 1.0


async def test_a_body_is_not_changed() -> None:
    made = call(stream=True, temperature=0.5)
    before = orjson.dumps(made.request.body)
    async with serving() as server, backend_at(server.base_url) as backend:
        await backend.execute(made)
    assert orjson.dumps(made.request.body) == before


@pytest.mark.parametrize(
    ("priority", "told"),
    [(None, [9, 9, 9]), ("lower_first", [-1, 0, 1]), ("higher_first", [1, 0, -1])],
)
async def test_a_server_is_told_what_is_urgent_in_its_own_way(
    priority: str | None, told: list[int]
) -> None:
    """A client's own `priority` counts only where the server is told none."""
    more = {} if priority is None else {"priority": priority}
    asked = call(priority=9)
    async with serving(good) as server, backend_at(server.base_url, **more) as backend:
        for tier, path in (("priority", "direct"), ("auto", "direct"), ("batch", "batch")):
            profile = replace(asked.profile, tier=tier)
            placement = replace(asked.placement, path=path)
            await backend.execute(replace(asked, profile=profile, placement=placement))
    assert [exchange.body["priority"] for exchange in server.asked] == told


async def test_a_refusal_whose_text_does_not_come_is_told_by_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.backends.openai.backend.ERROR_S_MAX", 0.05)

    async def behave(x: Exchange) -> None:
        head = b"HTTP/1.1 429 Busy\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\n{"
        await x.send(head)
        await asyncio.sleep(60)

    async with serving(behave) as server, backend_at(server.base_url) as backend:
        async with asyncio.timeout(5):
            with pytest.raises(CallError) as caught:
                await backend.execute(call())
    error = caught.value
    assert (error.code, error.after_s, error.is_pool_fault) == ("overloaded", 7.0, False)
