"""The gateway before a real system, by OpenAI's own clients."""

import asyncio
import copy
import hashlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest
import pytest_asyncio
import yaml
from gateway_cases import (
    BEHAVIOUR,
    EMBEDDER,
    GUARD,
    HELD,
    KEY,
    MODEL,
    SIMULATED,
    Door,
    door,
    fleet,
    warm_up,
)
from model_server import ModelServer
from openai import AsyncOpenAI
from running_system import System, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

HI = [{"role": "user", "content": "hi"}]
HOLD = [{"role": "user", "content": "hold"}]
HERE = Path(__file__).parent.parent / "producers" / "node"
CANCELLED_S_MAX = 1.0
# Of which no worker runs, and which has so many places.
ABSENT, SERVED, PLACES = "absent-eu", "served-eu", 64
SECRET = "what gateways and routers share"  # noqa: S105 - of these tests


@dataclass
class Bench:
    """What the tests of this module share."""

    system: System
    door: Door
    server: ModelServer
    client: AsyncOpenAI


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with ModelServer(BEHAVIOUR) as server:
        directory, declared = tmp_path_factory.mktemp("gateway"), fleet(server.base_url)
        declared["pools"][ABSENT] = copy.deepcopy(declared["pools"][SERVED])
        prefix, secret = f"gateway-{time.time_ns()}", {"SHUNTER_KEY_SECRET": SECRET}
        async with System(kafka, prefix, directory, declared, extra_env=secret) as system:
            policy = yaml.safe_load((directory / "policy.yaml").read_text())
            policy["tenants"] = {"locked": {"needs_key": True}}
            (directory / "policy.yaml").write_text(yaml.safe_dump(policy))
            system.start("router", SERVED, "sim-us")
            files = {"SHUNTER_GATEWAY_FILES": str(directory / "files")}
            async with door(system, **files) as opened, opened.client() as client:
                await warm_up(client)
                yield Bench(system, opened, server, client)


async def get(bench: Bench, path: str, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"} | headers) as asking:
        return await asking.get(bench.door.url + path)


async def test_an_answer_tells_where_it_was_made(bench: Bench) -> None:
    raw = await bench.client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HI, metadata={"ticket": "7"}, extra_body={"top_k": 3}
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "one two three"
    assert (answer.model, answer.service_tier) == (MODEL, "default")
    assert (raw.headers["x-shunter-pool"], raw.headers["x-shunter-path"]) == ("served-eu", "direct")
    assert float(raw.headers["x-shunter-cost-usd"]) > 0
    body = bench.server.asked[-1].body
    assert body["top_k"] == 3
    assert "metadata" not in body
    result = (await get(bench, f"/v1/requests/{raw.headers['x-request-id']}")).json()
    assert (result["status"], result["metadata"]) == ("completed", {"ticket": "7"})
    assert "response" not in result


async def test_a_stream_has_the_form_of_openais(bench: Bench) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    stream: Any = await bench.client.chat.completions.create(model=MODEL, messages=HI, **options)
    *chunks, last = [chunk async for chunk in stream]
    said = [(c.choices[0].delta.role, c.choices[0].delta.content) for c in chunks[:-1]]
    assert said == [("assistant", ""), (None, "one "), (None, "two "), (None, "three")]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.total_tokens) == ([], 10)
    assert last.model_extra["shunter"]["placement"]["pool"] == "served-eu"
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    text = await bench.client.completions.create(model=MODEL, prompt="hi", stream=True)
    assert "".join([c.choices[0].text async for c in text]) == "one two three"


async def test_a_response_is_made_of_a_chat_completion(bench: Bench) -> None:
    asking = bench.client.responses
    raw = await asking.with_raw_response.create(model=MODEL, instructions="count", input="hi")
    answer = raw.parse()
    assert (answer.output_text, answer.status, answer.model) == (
        "one two three",
        "completed",
        MODEL,
    )
    assert raw.headers["x-shunter-pool"] == "served-eu"
    assert [m["content"] for m in bench.server.asked[-1].body["messages"]] == ["count", "hi"]
    async with asking.stream(model=MODEL, input="hi") as stream:
        texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        whole = await stream.get_final_response()
    assert texts == ["one ", "two ", "three"]
    assert (whole.output_text, whole.usage and whole.usage.total_tokens) == ("one two three", 10)
    # Half an answer is an error, and no answer.
    with pytest.raises(openai.APIError):
        _ = [e async for e in await asking.create(model=MODEL, input="break", stream=True)]
    with pytest.raises(openai.BadRequestError) as refused:
        await asking.create(model=MODEL, input="hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


async def test_a_stream_of_a_simulated_pool_comes_in_pieces_too(bench: Bench) -> None:
    long = {"shunter": {"hints": {"output_tokens": 100}}}
    stream = await bench.client.chat.completions.create(
        model=SIMULATED, messages=HI, max_tokens=3, stream=True, extra_body=long
    )
    chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(c.delta.content or "" for c in chunks) == "the yard sorts"
    assert chunks[-1].finish_reason == "length"


async def test_embeddings_and_moderations(bench: Bench) -> None:
    urgent = {"service_tier": "priority"}
    # Where nothing is said, this client asks for base64 and reads it.
    for encoding, form in ((openai.omit, [0.5]), ("float", [0.5]), ("base64", "AAAAPw==")):
        found = await bench.client.embeddings.create(
            model=EMBEDDER, input="a", encoding_format=encoding, extra_body=urgent
        )
        assert found.data[0].embedding == form
    moderated = await bench.client.moderations.create(input="a")
    assert (moderated.model, moderated.results[0].flagged) == (GUARD, False)
    assert {m.id async for m in bench.client.models.list()} == {MODEL, EMBEDDER, GUARD, SIMULATED}


@pytest.mark.parametrize(
    ("wanted", "error", "code", "param"),
    [
        ({"model": "none"}, openai.NotFoundError, "model_not_found", "model"),
        (
            {"extra_body": {"shunter": {"constraints": {"regions": ["moon"]}}}},
            openai.UnprocessableEntityError,
            "no_pool",
            None,
        ),
        (
            {"extra_headers": {"X-Shunter-Regions": "moon"}},
            openai.UnprocessableEntityError,
            "no_pool",
            None,
        ),
        (
            {"extra_body": {"shunter": {"task": "none"}}},
            openai.BadRequestError,
            "unknown_task",
            "shunter.task",
        ),
        (
            {"model": SIMULATED, "messages": [{"role": "user", "content": "word " * 9000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": "refuse"}]},
            openai.BadRequestError,
            "odd",
            "n",
        ),
    ],
)
async def test_errors_are_those_of_the_sdk(
    bench: Bench,
    wanted: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    for streamed in (False, True):
        asked = {"model": MODEL, "messages": HI, "stream": streamed} | wanted
        with pytest.raises(error) as raised:
            await bench.client.chat.completions.create(**asked)
        assert (raised.value.code, raised.value.param) == (code, param)
        assert raised.value.request_id is not None


async def test_the_deadline_is_kept_by_the_gateway_itself(bench: Bench) -> None:
    began_at = time.monotonic()
    with pytest.raises(openai.InternalServerError) as raised:
        await bench.client.chat.completions.create(
            model=MODEL, messages=HOLD, extra_headers={"X-Shunter-Deadline": "1s"}
        )
    assert 0.9 < time.monotonic() - began_at < 10.0
    assert (raised.value.status_code, raised.value.code) == (504, "deadline_exceeded")
    assert raised.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_cancels_its_request(bench: Bench, streamed: bool) -> None:
    async def runs() -> bool:
        return bool(HELD)

    async def is_stopped() -> bool:
        return not HELD

    await eventually(is_stopped, "nothing runs")
    asked: dict[str, Any] = {"model": MODEL, "messages": HOLD, "stream": streamed}
    waiting = asyncio.create_task(bench.client.chat.completions.create(**asked))
    await eventually(runs, "it runs")
    if streamed:
        await (await waiting).close()
    else:
        waiting.cancel()
    left_at = time.monotonic()
    await eventually(is_stopped, "it is stopped at the server")
    assert time.monotonic() - left_at < CANCELLED_S_MAX


@pytest.mark.parametrize(("where", "pool"), [("held", ABSENT), ("placed", SERVED)])
async def test_a_client_that_leaves_cancels_what_waits_in_hold_and_lane(
    bench: Bench, where: str, pool: str
) -> None:
    """No worker of one pool runs; at the other all places are taken, so it stays in its lane."""
    system = bench.system

    async def all_run() -> bool:
        return len(HELD) == PLACES

    patient = {"X-Shunter-Deadline": "5m", "X-Shunter-Pools": pool}
    asked: dict[str, Any] = {"model": MODEL, "stream": True, "extra_headers": patient}
    taking: list[asyncio.Task[Any]] = [
        asyncio.create_task(bench.client.chat.completions.create(messages=HOLD, **asked))
        for _ in range(PLACES if pool == SERVED else 0)
    ]
    if taking:
        await eventually(all_run, "all places are taken")
    await system.catch_up()
    known = {step["request_id"] for step in system.evidence}
    waiting = asyncio.create_task(bench.client.chat.completions.create(messages=HI, **asked))

    def ids(kind: str) -> set[str]:
        return {s["request_id"] for s in system.evidence if s["step"] == kind} - known

    async def waits() -> bool:
        await system.read()
        return bool(ids(where))

    async def is_cancelled() -> bool:
        await system.read()
        return ids("cancelled") == ids(where) <= system.results.keys()

    await eventually(waits, f"it is {where}")
    waiting.cancel()
    left_at = time.time()
    await eventually(is_cancelled, "it is cancelled")
    (request_id,) = ids(where)
    assert system.result(request_id)["timing"]["started_at"] is None
    assert system.result(request_id)["timing"]["finished_at"] - left_at < CANCELLED_S_MAX
    for stream in await asyncio.gather(*taking):
        await stream.close()


@pytest.mark.parametrize(
    ("how", "deadline", "late"),
    # The silent one's try leaves little time for another, whose answer may begin too late.
    [("stall", "4s", {"deadline_exceeded"}), ("break", "5m", set())],
)
async def test_half_an_answer_never_looks_whole(
    bench: Bench, how: str, deadline: str, late: set[str]
) -> None:
    """Neither of a server that is silent from then on, nor of one that breaks off."""
    stream = await bench.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": how}],
        stream=True,
        extra_headers={"X-Shunter-Deadline": deadline},
        # Where no worker is, it would be waited for.
        extra_body={"shunter": {"constraints": {"exclude_pools": [ABSENT]}}},
    )
    choices = []

    async def read() -> None:
        async for chunk in stream:
            choices.extend(chunk.choices)

    with pytest.raises(openai.APIError) as raised:
        await read()
    assert raised.value.code in {"upstream_failed", "stream_interrupted"} | late
    assert "".join(choice.delta.content or "" for choice in choices) == "one "
    assert all(choice.finish_reason is None for choice in choices)


async def test_a_key_gets_the_answer_at_another_gateway_though_the_first_is_killed(
    bench: Bench,
) -> None:
    key = {"Idempotency-Key": f"key-{time.time_ns()}"}
    async with door(bench.system) as first, door(bench.system) as second:
        async with first.client() as client:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=HI, extra_headers=key
            )
        first.kill()
        asked = len(bench.server.asked)
        async with second.client() as client:
            again = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=HI, extra_headers=key
            )
            with pytest.raises(openai.UnprocessableEntityError) as raised:
                await client.chat.completions.create(
                    model=MODEL, messages=HI, extra_headers=key, max_tokens=1
                )
    assert raised.value.code == "idempotency_key_reused"
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] == raw.headers["x-request-id"]
    assert again.parse() == raw.parse()
    assert len(bench.server.asked) == asked


async def test_who_joins_a_stream_that_runs_gets_its_pieces_at_another_gateway(
    bench: Bench,
) -> None:
    wanted: dict[str, Any] = {"model": MODEL, "messages": HOLD, "stream": True}
    wanted["extra_headers"] = {"Idempotency-Key": f"key-{time.time_ns()}"}
    async with door(bench.system) as other, other.client() as elsewhere:
        begun = await bench.client.chat.completions.create(**wanted)
        joined = await elsewhere.chat.completions.with_raw_response.create(**wanted)
        assert joined.headers["idempotent-replayed"] == "true"
        for stream in (begun, joined.parse()):
            async with asyncio.timeout(90):
                role, piece = await anext(stream), await anext(stream)
            assert role.choices[0].delta.role == "assistant"
            assert piece.choices[0].delta.content == "one "
            await stream.close()


async def test_other_tenants_and_strangers_get_nothing(bench: Bench, tmp_path: Path) -> None:
    raw = await bench.client.chat.completions.with_raw_response.create(model=MODEL, messages=HI)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"tenant": "acme", "sha256": digest}]}))
    async with door(bench.system, SHUNTER_GATEWAY_KEYS=str(keys)) as closed:
        other = Bench(bench.system, closed, bench.server, bench.client)
        found = await get(other, f"/v1/requests/{raw.headers['x-request-id']}")
        assert (found.status_code, found.json()["error"]["code"]) == (404, "request_not_found")
        assert (await get(other, "/v1/models", Authorization="Bearer x")).status_code == 401
        keys.write_text(yaml.safe_dump({"keys": []}))

        async def is_shut() -> bool:
            return (await get(other, "/v1/models")).status_code == 401

        await eventually(is_shut, "the key is taken back without a restart")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_key_is_charged_for_what_its_client_left(
    bench: Bench, tmp_path: Path, streamed: bool
) -> None:
    entry = {"tenant": "acme", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [entry | {"limits": {"usd_per_day": 1e-12}}]}))
    asked: dict[str, Any] = {"model": MODEL, "messages": HOLD, "stream": streamed}
    async with door(bench.system, SHUNTER_GATEWAY_KEYS=str(keys)) as opened, opened.client() as c:

        async def runs() -> bool:
            return bool(HELD)

        async def is_stopped() -> bool:
            return not HELD

        await eventually(is_stopped, "nothing runs")
        waiting = asyncio.create_task(c.chat.completions.create(**asked))
        await eventually(runs, "it runs")
        if streamed:
            await (await waiting).close()
        else:
            waiting.cancel()

        async def is_charged() -> bool:
            try:
                await c.models.list()
            except openai.RateLimitError:
                return True
            return False

        await eventually(is_charged, "the key has used up its dollars")


async def test_a_tenant_that_needs_a_key_is_served_where_one_is_proven(
    bench: Bench, tmp_path: Path
) -> None:
    named, nameless = KEY, "key-without-a-name"
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (named, nameless)]
    entries = [{"tenant": "locked", "sha256": digest} for digest in digests]
    entries[0]["id"] = "locked-1"
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": entries}))
    own = {"SHUNTER_GATEWAY_KEYS": str(keys)}
    async with (
        door(bench.system, SHUNTER_KEY_SECRET=SECRET, **own) as proving,
        door(bench.system, **own) as silent,
    ):
        for opened, key in ((proving, nameless), (silent, named)):
            async with opened.client(api_key=key) as client:
                with pytest.raises(openai.PermissionDeniedError) as raised:
                    await client.chat.completions.create(model=MODEL, messages=HI)
            assert raised.value.code == "key_required"
        async with proving.client() as client:
            answer = await client.chat.completions.create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content == "one two three"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js and npm")
async def test_nodes_client(bench: Bench, tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(HERE / name, tmp_path)
    await asyncio.to_thread(
        subprocess.run, ["npm", "ci", "--silent"], cwd=tmp_path, check=True, timeout=120
    )
    command = ["node", "client.mjs", f"{bench.door.url}/v1", KEY, MODEL, EMBEDDER]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    said = orjson.loads(done.stdout)
    for way in ("answer", "streamed", "gathered", "batched"):
        assert said[way] == "one two three", way
    assert (said["chunks"], said["usage"], said["embedding"]) == (6, 10, [0.5])
    assert said["unknown"] == [404, "model_not_found"]
    assert said["responses"] == ["one two three", "one two three"]
    assert said["kept"] == [400, "unsupported_parameter"]
