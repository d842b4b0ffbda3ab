"""Files and batches by OpenAI's own client, before real processes that are killed."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import pytest_asyncio
import yaml
from batch_cases import chat_line, file_of
from gateway_cases import BEHAVIOUR, HELD, KEY, MODEL, door, fleet, told, warm_up
from model_server import ModelServer
from openai import AsyncOpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from running_system import System, eventually
from s3_cases import new_bucket, s3_server

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

OTHER_KEY = "key-of-other"
ENDED = {"failed", "completed", "expired", "cancelled"}
ENDPOINT = "/v1/chat/completions"


@dataclass
class Bench:
    """What the tests of this module share."""

    system: System
    server: ModelServer
    env: dict[str, str]
    client: AsyncOpenAI
    other: AsyncOpenAI


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    directory = tmp_path_factory.mktemp("batches")
    keys = [
        {"tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for tenant, key in (("acme", KEY), ("other", OTHER_KEY))
    ]
    (directory / "keys.yaml").write_text(yaml.safe_dump({"keys": keys}))
    env = {
        "SHUNTER_GATEWAY_FILES": str(directory / "files"),
        "SHUNTER_GATEWAY_KEYS": str(directory / "keys.yaml"),
    }
    async with ModelServer(BEHAVIOUR) as server:
        declared = fleet(server.base_url)
        async with System(kafka, f"batches-{time.time_ns()}", directory, declared) as system:
            system.start_all()
            async with (
                door(system, **env) as opened,
                opened.client() as client,
                opened.client(api_key=OTHER_KEY) as other,
            ):
                await warm_up(client)
                yield Bench(system, server, env, client, other)


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def line(name: str, text: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": said(text or name), "max_tokens": 16}
    return chat_line(name, body=body | fields)


async def begun(client: AsyncOpenAI, lines: Iterable[Any], **fields: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", file_of(list(lines))), purpose="batch")
    given: dict[str, Any] = {"endpoint": ENDPOINT, "completion_window": "24h"} | fields
    return await client.batches.create(input_file_id=file.id, **given)


async def ended(client: AsyncOpenAI, batch: Batch, timeout_s: float = 90.0) -> Batch:
    async def is_ended() -> bool:
        nonlocal batch
        batch = await client.batches.retrieve(batch.id)
        return batch.status in ENDED

    await eventually(is_ended, "the batch has ended", timeout_s)
    return batch


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [orjson.loads(each) for each in content.content.splitlines()]


async def both(client: AsyncOpenAI, batch: Batch) -> tuple[list[Any], list[Any]]:
    output = await lines_of(client, batch.output_file_id)
    return output, await lines_of(client, batch.error_file_id)


async def test_a_batch_from_the_file_to_the_answers(bench: Bench) -> None:
    names = [f"line {n}" for n in range(12)]
    contents = b"\xef\xbb\xbf" + file_of([*map(line, names), b"", line("no", "refuse")])
    file = await bench.client.files.create(
        file=("in.jsonl", contents.replace(b"\n", b"\r\n")), purpose="batch"
    )
    assert (file.purpose, file.status, file.filename) == ("batch", "processed", "in.jsonl")
    batch = await bench.client.batches.create(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window="24h",
        metadata={"job": "nightly"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (batch.status, batch.metadata) == ("validating", {"job": "nightly"})
    assert batch.expires_at - batch.created_at == 86400
    assert (await bench.client.files.delete(file.id)).deleted
    batch = await ended(bench.client, batch)
    assert batch.status == "completed"
    assert (batch.model, batch.error_file_id is None) == (MODEL, False)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (13, 12, 1)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output, (refused,) = await both(bench.client, batch)
    assert {each["custom_id"] for each in output} == set(names)
    for each in output:
        answer = ChatCompletion.model_validate(each["response"]["body"], strict=True)
        assert answer.choices[0].message.content == "one two three"
        assert (each["response"]["status_code"], each["error"]) == (200, None)
        assert answer.model == MODEL
    # A line that the router reads before all others is alone, and goes at once.
    assert "batch" in {each["shunter"]["placement"]["path"] for each in output}
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("no", 400)
    assert refused["response"]["body"]["error"]["code"] == "odd"
    made = await bench.client.files.retrieve(batch.output_file_id)
    assert (made.purpose, made.expires_at - made.created_at) == ("batch_output", 3600)


async def test_lines_may_ask_for_responses(bench: Bench) -> None:
    body = {"model": MODEL, "instructions": "count", "input": "hi", "max_output_tokens": 16}
    asked = chat_line("a", url="/v1/responses", body=body)
    wrong = asked | {"custom_id": "b", "body": body | {"background": True}}
    lines, endpoint = [asked], "/v1/responses"
    batch = await ended(bench.client, await begun(bench.client, lines, endpoint=endpoint))
    (answered,), failed = await both(bench.client, batch)
    answer = Response.model_validate(answered["response"]["body"])
    assert (answer.output_text, answer.instructions, failed) == ("one two three", "count", [])
    assert answered["shunter"]["placement"]["pool"] == "served-eu"
    refused = await ended(bench.client, await begun(bench.client, [wrong], endpoint=endpoint))
    assert [each.param for each in refused.errors.data] == ["background"]


async def test_lists_by_pages_and_of_one_tenant_alone(bench: Bench) -> None:
    made = [await begun(bench.other, [line("a")]) for _ in range(3)]
    theirs = [b.id async for b in bench.other.batches.list(limit=2)]
    assert theirs == [b.id for b in made[::-1]]
    page = await bench.other.batches.list(limit=2)
    assert (page.has_more, len(page.data)) == (True, 2)
    files = [f.id async for f in bench.other.files.list(order="asc", purpose="batch")]
    assert files == [b.input_file_id for b in made]
    for ask in (bench.client.batches.retrieve, bench.client.batches.cancel):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask(made[0].id)
        assert refused.value.code == "batch_not_found"
    with pytest.raises(openai.NotFoundError) as refused:
        await bench.client.files.content(made[0].input_file_id)
    assert refused.value.code == "file_not_found"
    with pytest.raises(openai.NotFoundError):
        await begun(
            bench.client, [line("a")], endpoint=ENDPOINT
        ) and await bench.client.batches.create(
            input_file_id=made[0].input_file_id,
            endpoint=ENDPOINT,
            completion_window="24h",
        )
    for batch in made:
        await ended(bench.other, batch)


async def test_bad_input_fails_before_anything_runs(bench: Bench) -> None:
    asked = len(bench.server.asked)
    bad = [
        line("a"),
        b"nonsense",
        line("a"),
        line("b") | {"method": "GET"},
        line("c") | {"url": "/v1/embeddings"},
        {"custom_id": "d", "method": "POST", "url": ENDPOINT},
    ]
    batch = await ended(bench.client, await begun(bench.client, bad))
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert batch.failed_at is not None
    assert [(each.line, each.code) for each in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_method"),
        (5, "url_mismatch"),
        (6, "missing_required_parameter"),
    ]
    empty = await ended(bench.client, await begun(bench.client, [b""]))
    assert [each.code for each in empty.errors.data] == ["empty_file"]
    assert len(bench.server.asked) == asked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"completion_window": "8d"}, "completion_window"),
        ({"endpoint": "/v1/messages"}, "endpoint"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
    ],
)
async def test_what_no_batch_can_be(bench: Bench, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await begun(bench.client, [line("a")], **fields)
    assert refused.value.code == "invalid_value"
    assert refused.value.param.startswith(param)


async def test_a_cancelled_batch_keeps_what_it_has(bench: Bench) -> None:
    names = [f"quick {n}" for n in range(4)] + [f"slow {n}" for n in range(3)]
    lines = [line(n, "hold" if n.startswith("slow") else None) for n in names]
    batch = await begun(bench.client, lines)

    async def is_part_done() -> bool:
        now = await bench.client.batches.retrieve(batch.id)
        return now.request_counts.completed == 4 and len(HELD) == 3

    await eventually(is_part_done, "what can end has ended", 60)
    cancelling = await bench.client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    assert cancelling.cancelling_at is not None
    over = await ended(bench.client, batch)
    assert (over.status, len(HELD)) == ("cancelled", 0)
    output, errors = await both(bench.client, over)
    assert {each["custom_id"] for each in output} == set(names[:4])
    assert {each["custom_id"] for each in errors} == set(names[4:])
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert {each["response"] for each in errors} == {None}
    with pytest.raises(openai.ConflictError) as refused:
        await bench.client.batches.cancel(batch.id)
    assert refused.value.code == "batch_not_cancellable"


@pytest.mark.slow
async def test_a_batch_expires_with_partial_output(bench: Bench) -> None:
    lines = [line("quick"), line("slow", "hold")]
    over = await ended(bench.client, await begun(bench.client, lines, completion_window="15s"))
    assert over.status == "expired"
    output, errors = await both(bench.client, over)
    assert [each["custom_id"] for each in output] == ["quick"]
    assert [(e["custom_id"], e["error"]["code"]) for e in errors] == [("slow", "batch_expired")]


@pytest.mark.slow
async def test_gateways_that_are_killed_in_the_middle(bench: Bench, tmp_path: Path) -> None:
    """Each line is in one file once, and ran once, whoever drove the batch."""
    env = bench.env | {"SHUNTER_GATEWAY_FILES": str(tmp_path)}
    names = [f"killed {n}" for n in range(1500)]
    async with door(bench.system, **env) as first, first.client() as client:
        batch = await begun(client, map(line, names))
        first.kill()
    for least in (1, 300, 800):
        async with door(bench.system, **env) as next_one, next_one.client() as client:

            async def is_so_far(client: AsyncOpenAI = client, least: int = least) -> bool:
                counts = (await client.batches.retrieve(batch.id)).request_counts
                return counts.completed >= least

            await eventually(is_so_far, f"{least} lines have ended", 90)
            next_one.kill()
    async with door(bench.system, **env) as last, last.client() as client:
        over = await ended(client, batch)
        assert over.status == "completed"
        output, errors = await both(client, over)
    assert errors == []
    assert Counter(each["custom_id"] for each in output) == Counter(names)
    ran = Counter(told(each.body) for each in bench.server.asked if each.body)
    assert {ran[name] for name in names} == {1}


async def test_gateways_on_an_object_store_are_killed_side_by_side(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways on one bucket; whoever drives is killed, and its batch goes on at the other."""
    names = [f"remote {n}" for n in range(900)]
    with s3_server() as s3:
        for name, value in s3.items():
            monkeypatch.setenv(name, value)
        env = bench.env | s3 | {"SHUNTER_GATEWAY_FILES": f"{new_bucket()}/door"}
        async with (
            door(bench.system, **env) as one,
            door(bench.system, **env) as two,
            door(bench.system, **env) as last,
            last.client() as client,
        ):
            async with one.client() as first:
                batch = await begun(first, map(line, names))
                slow = await begun(first, [line("held", "hold")])
            await client.files.delete(batch.input_file_id)
            for least, victim in ((1, one), (300, two)):

                async def is_so_far(least: int = least) -> bool:
                    counts = (await client.batches.retrieve(batch.id)).request_counts
                    return counts.completed >= least

                await eventually(is_so_far, f"{least} lines have ended", 90)
                victim.kill()
            await client.batches.cancel(slow.id)
            over, cancelled = await ended(client, batch), await ended(client, slow)
            assert (over.status, cancelled.status) == ("completed", "cancelled")
            output, errors = await both(client, over)
            assert {b.id async for b in client.batches.list()} == {over.id, cancelled.id}
    assert errors == []
    assert Counter(each["custom_id"] for each in output) == Counter(names)
    ran = Counter(told(each.body) for each in bench.server.asked if each.body)
    assert {ran[name] for name in names} == {1}


async def test_an_upload_that_breaks_off_is_no_file(bench: Bench) -> None:
    before = {f.id async for f in bench.client.files.list()}
    # Batches of other tests write theirs there, too.
    uploads = Path(bench.env["SHUNTER_GATEWAY_FILES"]) / "uploads"
    others = set(uploads.iterdir())
    port = bench.client.base_url.port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    writer.write(head.encode() + b"half" * 2000)
    await writer.drain()
    begun: set[Path] = set()

    async def is_begun() -> bool:
        begun.update(set(uploads.iterdir()) - others)
        return bool(begun)

    await eventually(is_begun, "the upload stands on the disk")
    writer.close()
    await writer.wait_closed()

    async def is_gone() -> bool:
        return not any(path.exists() for path in begun)

    await eventually(is_gone, "nothing of it is left")
    assert {f.id async for f in bench.client.files.list()} == before
