"""The simulated accelerator in real time, and the answers it gives."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
import pytest_asyncio
from simulated_cases import OPTION, make_call, sized
from simulation.loop import VirtualLoop
from stream_cases import request, soon

from policies import Option
from policies.hardware import pool_fill, pool_line
from policies.hardware.replica import USUAL, FillLimits
from policies.hardware.replica_choice import choose_replica
from streams.engine.clock import SystemClock
from workers.backends.base import INPUTS_MAX, Call, CallError, Outcome
from workers.backends.simulated.backend import SimulatedBackend
from workers.backends.simulated.responses import (
    EMBEDDING_DIMENSIONS,
    body,
    finish_reason,
    output_tokens,
)

# Epoch seconds as floats are exact to a quarter of a microsecond, and the model's time runs faster.
MODEL_JITTER_S = 2e-5


Start = Callable[..., Awaitable[SimulatedBackend]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Return what starts a backend for the options given, by default that of one replica."""
    backends: list[SimulatedBackend] = []

    async def start_backend(*options: Option) -> SimulatedBackend:
        backend = SimulatedBackend(options or (OPTION,), SystemClock())
        await backend.start()
        backends.append(backend)
        return backend

    yield start_backend
    for backend in backends:
        await backend.stop()


def run(backend: SimulatedBackend, *calls: Call) -> list[asyncio.Task[Outcome]]:
    return [asyncio.create_task(backend.execute(call)) for call in calls]


async def until(check: Callable[[], bool], what: str) -> None:
    async def wait() -> None:
        while not check():  # noqa: ASYNC110 - the model has no event to wait for
            await asyncio.sleep(0.001)

    await soon(wait(), what)


async def test_a_call_alone_takes_the_time_of_its_roofline(start: Start) -> None:
    backend = await start()
    before = time.time()
    outcome = await backend.execute(sized("c0", 800, 300))
    assert before <= outcome.started_at <= outcome.finished_at <= time.time()
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (800, 300)
    assert outcome.first_token_at is not None
    prefill_s = (outcome.first_token_at - outcome.started_at) * OPTION.time_scale
    decode_s = (outcome.finished_at - outcome.first_token_at) * OPTION.time_scale
    expected_s = OPTION.roofline.decode_s(300, 1, 800)
    assert prefill_s == pytest.approx(OPTION.roofline.prefill_s(800), abs=MODEL_JITTER_S)
    assert decode_s == pytest.approx(expected_s, abs=MODEL_JITTER_S)
    assert outcome.device_s == pytest.approx(OPTION.roofline.prefill_s(800) + expected_s)


async def test_the_pace_of_the_pool_is_that_of_its_time_scale(start: Start) -> None:
    backend = await start(replace(OPTION, time_scale=100.0))
    before = time.monotonic()
    outcome = await backend.execute(sized("c0", 800, 300))
    assert time.monotonic() - before < 0.5 * outcome.device_s
    device_s = (outcome.finished_at - outcome.started_at) * 100.0
    assert device_s == pytest.approx(outcome.device_s, abs=10 * MODEL_JITTER_S)


async def test_equal_calls_finish_in_the_order_they_came_and_share_the_device(
    start: Start,
) -> None:
    backend = await start()
    names = [f"c{n}" for n in range(10)]
    finished: list[str] = []
    calls = [sized(name, 500, 100) for name in names]
    # Those that have no place wait by when they are due.
    came_at = calls[0].profile.created_at
    tasks = run(
        backend,
        *(
            replace(call, profile=replace(call.profile, created_at=came_at + 0.01 * number))
            for number, call in enumerate(calls)
        ),
    )
    for name, task in zip(names, tasks, strict=True):
        task.add_done_callback(lambda _, name=name: finished.append(name))
    running: list[int] = []

    def all_done() -> bool:
        running.append(backend.load().variants[OPTION.variant].running)
        return len(finished) == len(names)

    await until(all_done, "ten calls")
    assert finished == names
    assert max(running) == OPTION.max_batch
    prefill_s = OPTION.roofline.prefill_s(500)
    alone_s = prefill_s + OPTION.roofline.decode_s(100, 1, 500)
    for outcome in [task.result() for task in tasks]:
        assert outcome.first_token_at is not None
        first_s = (outcome.first_token_at - outcome.started_at) * OPTION.time_scale
        assert first_s >= prefill_s - MODEL_JITTER_S
        assert outcome.started_at < outcome.first_token_at < outcome.finished_at
        # Together they take less of the device than one after the other.
        assert 0.5 * prefill_s < outcome.device_s < 0.6 * alone_s


async def test_direct_work_is_admitted_before_batch_work(start: Start) -> None:
    backend = await start(replace(OPTION, max_batch=1))
    finished: list[str] = []
    batch = run(backend, *(sized(f"s{n}", 500, 200, "batch") for n in range(3)))
    await until(lambda: backend.load().variants[OPTION.variant].running == 1, "a full device")
    tasks = [*batch, *run(backend, sized("c0", 500, 20))]
    for name, task in zip(("s0", "s1", "s2", "c0"), tasks, strict=True):
        task.add_done_callback(lambda _, name=name: finished.append(name))
    await until(lambda: len(finished) == 4, "all")
    assert finished == ["s0", "c0", "s1", "s2"]


async def test_replicas_run_side_by_side(start: Start) -> None:
    backend = await start(replace(OPTION, replicas=2))
    tasks = run(backend, *(sized(f"c{n}", 500, 400) for n in range(8)))
    await until(lambda: backend.load().variants[OPTION.variant].running == 8, "two full devices")
    await soon(asyncio.gather(*tasks), "all")


def test_members_of_a_batch_share_a_replica() -> None:
    """On a clock of its own: on a busy machine those that came first end before others begin."""

    async def took_s(batch_of: Callable[[int], str], count: int) -> tuple[float, float]:
        backend = SimulatedBackend((replace(OPTION, replicas=2, time_scale=1.0),), SystemClock())
        await backend.start()
        calls = [sized(f"m{n}", 500, 100, "batch") for n in range(count)]
        members = [
            replace(call, placement=replace(call.placement, batch_id=batch_of(n)))
            for n, call in enumerate(calls)
        ]
        outcomes = await soon(asyncio.gather(*run(backend, *members)), "the batch")
        ended_s = asyncio.get_running_loop().time()
        await backend.stop()
        return sum(outcome.device_s for outcome in outcomes), ended_s

    def took(batch_of: Callable[[int], str], count: int = 4) -> tuple[float, float]:
        return VirtualLoop().finish(took_s(batch_of, count))

    # They fill a replica; so four batches of one would, as work gathers.
    device_s, ended_s = took(lambda _: "one")
    assert took(lambda n: f"each-{n}") == pytest.approx((device_s, ended_s))
    # Two batches run side by side; of one, the rest waits though the other replica is idle.
    two = took(lambda n: "full" if n < 4 else "other", count=8)
    assert two == pytest.approx((2 * device_s, ended_s))
    assert took(lambda _: "one", count=8)[1] > 1.5 * ended_s


async def test_what_never_fits_is_refused_for_another_pool_and_harms_nobody(start: Start) -> None:
    backend = await start()
    fits, large = run(backend, sized("c0", 500, 20), sized("huge", 9_000_000, 10))
    with pytest.raises(CallError, match="KV memory") as caught:
        await soon(large, "the refusal")
    assert (caught.value.code, caught.value.retry) == ("memory", "elsewhere")
    assert (await soon(fits, "the other")).usage.output_tokens == 20
    assert backend.load().backlog_s == 0.0


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/moderations"])
async def test_texts_without_an_end_are_refused_before_they_stop_the_process(
    start: Start, url: str
) -> None:
    """Each is a vector; of a megabyte of empty ones they took minutes, and gigabytes."""
    backend = await start()
    few, many = (
        make_call(url=url, id=str(n), body={"model": "yard-8b", "input": [""] * n})
        for n in (INPUTS_MAX, INPUTS_MAX + 1)
    )
    with pytest.raises(CallError, match="2048 texts at most") as caught:
        await soon(backend.execute(many), "the refusal")
    assert (caught.value.code, caught.value.retry) == ("request_refused", "never")
    assert (await soon(backend.execute(few), "the answer")).response.status_code == 200


async def test_a_reply_that_the_context_cuts_off_says_so(start: Start) -> None:
    backend = await start()
    room = min(OPTION.context_tokens, OPTION.kv_capacity_tokens)
    (asked,) = run(backend, sized("c0", room - 5, 40))
    outcome = await soon(asked, "the reply")
    assert outcome.usage.output_tokens == 5
    assert outcome.response.body["choices"][0]["finish_reason"] == "length"


async def test_a_cancelled_call_frees_its_place_at_once(start: Start) -> None:
    backend = await start()
    long = run(backend, *(sized(f"long{n}", 500, 20_000) for n in range(4)))
    await until(lambda: backend.load().variants[OPTION.variant].running == 4, "a full device")
    (waiting,) = run(backend, sized("c0", 500, 20))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    long[1].cancel()
    await soon(waiting, "the one that waited")
    assert not any(task.done() for task in (long[0], *long[2:])), "it took another's place"
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)
    await until(lambda: backend.load().variants[OPTION.variant].running == 0, "an empty device")


async def test_the_load_is_what_runs_what_waits_and_what_is_still_to_prefill(
    start: Start,
) -> None:
    backend = await start()
    load = backend.load()
    assert load.backlog_s == 0.0
    status = load.variants[OPTION.variant]
    assert (status.running, status.queued, status.speed) == (0, 0, 1.0)
    tasks = run(backend, *(sized(f"c{n}", 1000, 400) for n in range(6)))
    await asyncio.sleep(0)
    # Short prompts are computed together, up to the size of a chunk.
    full_s = OPTION.roofline.prefill_s(2048)
    four_s = (full_s + OPTION.roofline.prefill_s(4000 - 2048)) / OPTION.time_scale
    # Those without a place wait in the line; nobody knows yet with whom they will be computed.
    two_s = 2 * OPTION.roofline.prefill_s(1000) / OPTION.time_scale
    assert backend.load().backlog_s == pytest.approx(four_s + two_s)
    await until(lambda: backend.load().backlog_s < 1.1 * two_s, "four prefills")
    status = backend.load().variants[OPTION.variant]
    assert (status.running, status.queued) == (4, 2)
    assert backend.load().backlog_s == pytest.approx(two_s)
    await soon(asyncio.gather(*tasks), "all")
    load = backend.load()
    assert load.backlog_s == 0.0
    # The device keeps to its roofline, so what is measured is not far from 1.
    assert 0.5 < load.variants[OPTION.variant].speed < 2.0


async def test_a_defect_of_the_devices_ends_every_call(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await start()
    running = asyncio.create_task(backend.execute(make_call(id="c0")))
    await asyncio.sleep(0)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("policies.hardware.accelerator.Accelerator.advance", broken)
    backend._changed.set()
    with pytest.raises(ZeroDivisionError):
        await soon(running, "the end of the call")
    with pytest.raises(RuntimeError, match="stand still"):
        await backend.execute(make_call(id="c1"))


async def test_a_stop_cancels_what_runs(start: Start) -> None:
    backend = await start()
    tasks = run(backend, *(sized(f"c{n}", 500, 20_000) for n in range(6)))
    await until(lambda: backend.load().variants[OPTION.variant].running == 4, "a full device")
    await backend.stop()
    outcomes = await soon(asyncio.gather(*tasks, return_exceptions=True), "the end")
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


async def test_a_hint_of_no_prompt_at_all_is_served(start: Start) -> None:
    backend = await start()
    outcome = await soon(backend.execute(sized("c0", 0, 5)), "the answer")
    assert outcome.usage.output_tokens == 5


async def test_a_call_without_output_ends_with_its_prefill(start: Start) -> None:
    backend = await start()
    embedding = make_call(url="/v1/embeddings", body={"model": "yard-8b", "input": "x" * 4000})
    outcome = await soon(backend.execute(embedding), "the answer")
    assert outcome.first_token_at is None
    assert outcome.usage.output_tokens == 0
    took_s = (outcome.finished_at - outcome.started_at) * OPTION.time_scale
    assert took_s == pytest.approx(OPTION.roofline.prefill_s(1000), abs=MODEL_JITTER_S)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"metadata": {"simulate": {"output_tokens": 7}}, "hints": {"output_tokens": 9}}, 7),
        ({"hints": {"output_tokens": 9}}, 9),
        ({"metadata": {"simulate": {"output_tokens": -1}}, "hints": {"output_tokens": 9}}, 9),
        ({"metadata": "text", "hints": {"output_tokens": 9}}, 9),
        ({"hints": {"output_tokens": 9}, "body": {"model": "yard-8b", "max_tokens": 4}}, 4),
        ({"metadata": {"simulate": {"output_tokens": 0}}}, 0),
        ({"url": "/v1/embeddings", "hints": {"output_tokens": 9}}, 0),
    ],
)
def test_how_long_an_answer_is(fields: dict[str, Any], tokens: int) -> None:
    call = make_call(**fields)
    assert output_tokens(call.request, call.profile, {}, 8192) == tokens


def test_a_reply_ends_where_the_context_does() -> None:
    call = make_call(hints={"output_tokens": 500})
    assert output_tokens(call.request, call.profile, {}, 40) == 40
    assert output_tokens(call.request, call.profile, {}, 0) == 1


def test_a_length_that_nobody_told_is_drawn_alike_every_time() -> None:
    drawn = []
    for n in range(400):
        call = make_call(id=f"r{n}")
        drawn.append(output_tokens(call.request, call.profile, {}, 8192))
        assert drawn[-1] == output_tokens(call.request, call.profile, {}, 8192)
    assert min(drawn) >= 1
    assert len(set(drawn)) > 100
    # The class expects 100; the mean of 400 exponential draws is within a fifth of it.
    assert 80 < sum(drawn) / len(drawn) < 120


def answer(url: str, tokens: int, room: int = 8192, **fields: Any) -> dict[str, Any]:
    """Return a body as a client reads it: through JSON."""
    call = make_call(url=url, id="r1", hints={"input_tokens": 11}, **fields)
    ended = finish_reason(call.request, tokens, room)
    said = body(call.request, call.profile, "yard-8b-fp8", (tokens, 0), 1_800_000_000.5, ended)
    found: dict[str, Any] = orjson.loads(orjson.dumps(said))
    assert found["model"] == "yard-8b-fp8"
    usage = found["usage"]
    assert usage["prompt_tokens"] == 11
    assert usage["total_tokens"] == 11 + usage.get("completion_tokens", 0)
    return found


@pytest.mark.parametrize(
    ("limit", "room", "reason"),
    [(6, 90, "length"), (7, 90, "stop"), (None, 90, "stop"), (None, 6, "length"), (7, 0, "length")],
)
def test_a_chat_completion_has_the_form_of_one(limit: int | None, room: int, reason: str) -> None:
    fields = request()["body"] | ({} if limit is None else {"max_tokens": limit})
    found = answer("/v1/chat/completions", 6, room, body=fields)
    assert set(found) == {"id", "object", "created", "model", "choices", "usage"}
    assert found["object"] == "chat.completion"
    assert found["created"] == 1_800_000_000
    (choice,) = found["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, reason)
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 6
    assert found["usage"]["completion_tokens"] == 6


def test_a_completion_has_the_form_of_one() -> None:
    found = answer("/v1/completions", 3, body={"model": "yard-8b", "prompt": "x"})
    assert found["object"] == "text_completion"
    (choice,) = found["choices"]
    assert len(choice["text"].split()) == 3
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")


@pytest.mark.parametrize(
    ("inputs", "count"),
    [("one", 1), (["a", "b", "c"], 3), ([5, 6, 7], 1), ([[5, 6], [7]], 2), ([], 1)],
)
def test_embeddings_are_one_unit_vector_for_each_input(inputs: Any, count: int) -> None:
    found = answer("/v1/embeddings", 0, body={"model": "yard-8b", "input": inputs})
    assert found["object"] == "list"
    assert set(found["usage"]) == {"prompt_tokens", "total_tokens"}
    assert [row["index"] for row in found["data"]] == list(range(count))
    for row in found["data"]:
        assert row["object"] == "embedding"
        assert len(row["embedding"]) == EMBEDDING_DIMENSIONS
        assert math.hypot(*row["embedding"]) == pytest.approx(1.0, abs=1e-4)
    assert len({tuple(row["embedding"]) for row in found["data"]}) == count


@pytest.mark.parametrize(("inputs", "count"), [("one", 1), (["a", "b"], 2)])
def test_moderations_are_one_result_for_each_input(inputs: Any, count: int) -> None:
    found = answer("/v1/moderations", 2, body={"model": "yard-8b", "input": inputs})
    assert len(found["results"]) == count
    for result in found["results"]:
        assert result["flagged"] is False
        assert result["categories"] == {}
        assert result["category_scores"] == {}


async def streamed(start: Start, tokens: int, **fields: Any) -> tuple[list[Any], Outcome]:
    """Run a call alone in real time; return the pieces with their times, and the outcome."""
    backend = await start(replace(OPTION, time_scale=1.0))
    told: list[Any] = []

    async def tell(chunk: dict[str, Any]) -> None:
        told.append((time.time(), chunk))

    hints = {"input_tokens": 50, "output_tokens": tokens}
    call = make_call(hints=hints, **fields)
    return told, await backend.execute(replace(call, tell=tell))


async def test_a_streamed_answer_comes_in_pieces_as_it_is_decoded(start: Start) -> None:
    told, outcome = await streamed(start, 60)
    whole = outcome.response.body["choices"][0]["message"]["content"]
    deltas = [chunk["choices"][0]["delta"] for _, chunk in told]
    assert "".join(delta["content"] for delta in deltas) == whole
    assert deltas[0]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for _, c in told][-2:] == [None, "stop"]
    # By the device, half of the text is there in half of the time.
    sent, middle = 0, (outcome.first_token_at + outcome.finished_at) / 2  # type: ignore[operator]
    for at, chunk in told:
        sent += len(chunk["choices"][0]["delta"]["content"]) if at <= middle else 0
    assert 0.2 * len(whole) < sent < 0.8 * len(whole)


async def test_a_streamed_completion_is_text_and_one_token_is_one_piece(start: Start) -> None:
    prompt = {"model": "yard-8b", "prompt": "hello", "stream": True}
    told, outcome = await streamed(start, 1, url="/v1/completions", body=prompt)
    ((_, chunk),) = told
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == outcome.response.body["choices"]


async def test_a_cancelled_stream_leaves_the_device_at_once(start: Start) -> None:
    backend = await start(replace(OPTION, time_scale=1.0))
    seen = asyncio.Event()

    async def tell(_: dict[str, Any]) -> None:
        seen.set()

    (task,) = run(backend, replace(sized("c", 50, 100_000), tell=tell))
    await soon(seen.wait(), "a first piece")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: backend.load().variants[OPTION.variant].running == 0, "the device is free")


async def test_a_turn_of_a_session_finds_what_the_last_one_left(start: Start) -> None:
    backend = await start()

    async def turn(name: str, tokens: int, **fields: Any) -> Outcome:
        hints = {"input_tokens": tokens, "output_tokens": 20}
        return await backend.execute(make_call(id=name, hints=hints, **fields))

    first = await turn("a", 1000, session="s")
    second = await turn("b", 1500, session="s")
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 1020)
    told = second.response.body["usage"]["prompt_tokens_details"]
    assert told == {"cached_tokens": 1020}
    assert second.first_token_at - second.started_at < first.first_token_at - first.started_at  # type: ignore[operator]
    assert (await turn("c", 1500, session="other")).usage.cached_tokens == 0
    assert (await turn("d", 1500, session="s", tenant="rival")).usage.cached_tokens == 0
    known = {"simulate": {"prefix_tokens": 700}}
    assert (await turn("e", 1600, session="s", metadata=known)).usage.cached_tokens == 700
    named = {"model": "yard-8b", "messages": [], "prompt_cache_key": "s"}
    assert (await turn("f", 1700, body=named)).usage.cached_tokens == 1620


async def test_replicas_are_filled_further_where_requests_keep_their_slo_and_less_after_a_miss(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled_to: list[FillLimits] = []

    def chosen(replicas: Any, ask: Any, now: float, limits: FillLimits, homes: Any) -> int:
        filled_to.append(limits)
        return choose_replica(replicas, ask, now, limits, homes)

    monkeypatch.setattr(pool_line, "choose_replica", chosen)
    monkeypatch.setattr(pool_fill, "MISS_STEP", 1.0)
    monkeypatch.setattr(pool_fill, "MISSED_MAX", 1.0)
    backend = await start()
    for tpot_s in (1000.0, 1e-9, 1000.0):
        call = sized(f"within {tpot_s} {len(filled_to)}", 100, 10)
        await backend.execute(
            replace(call, profile=replace(call.profile, ttft_s=None, tpot_s=tpot_s))
        )
    assert filled_to == [USUAL, pytest.approx(pool_fill.FULL), USUAL]
