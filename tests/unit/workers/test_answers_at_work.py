"""Requests of several answers at workers and their backends: written, counted and charged each."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from memory_log import MemoryLog
from model_server import Exchange, serving
from openai_cases import OPTIONS, backend_at, call
from simulated_cases import OPTION, make_call
from stream_cases import Yard, make_profile, soon, step_until
from worker_cases import ScriptedBackend, make_worker, place, serve

from policies.learning.feedback import Experience
from streams.engine.clock import SystemClock
from streams.engine.transactor import Transactor
from topics import Response, Usage
from workers.backends.base import INPUTS_MAX, CallError, Outcome
from workers.backends.simulated.backend import SimulatedBackend
from workers.feedback import Learning
from workers.resilience.attempts import service_s
from workers.stage.second_runs import _as_answered as as_answered

CHAT: dict[str, Any] = {"model": "yard-8b", "messages": [{"role": "user", "content": "hi"}]}
LENGTHS = {"input_tokens": 600, "output_tokens": 40}


def choices_of(count: int) -> Response:
    return Response(200, {"choices": [{"index": index, "text": "a"} for index in range(count)]})


async def simulated(tell: Any = None, **fields: Any) -> Outcome:
    backend = SimulatedBackend((OPTION,), SystemClock())
    await backend.start()
    try:
        made = make_call(**{"hints": LENGTHS} | fields)
        if tell is not None:
            made = type(made)(made.request, made.profile, made.placement, tell)
        return await asyncio.wait_for(backend.execute(made), 20)
    finally:
        await backend.stop()


@pytest.mark.parametrize(
    ("url", "body", "choices", "answers"),
    [
        ("/v1/chat/completions", CHAT | {"n": 3}, 3, 3),
        ("/v1/completions", {"model": "yard-8b", "prompt": ["a", "b"], "n": 2}, 4, 4),
        ("/v1/completions", {"model": "yard-8b", "prompt": "a", "n": 2, "best_of": 5}, 2, 5),
    ],
)
async def test_simulated_devices_write_each_answer_and_charge_for_it(
    url: str, body: dict[str, Any], choices: int, answers: int
) -> None:
    one = await simulated(url=url, body={"model": "yard-8b"} | dict.fromkeys(["prompt"], "a"))
    found = await simulated(url=url, body=body)
    told = found.response.body
    assert [choice["index"] for choice in told["choices"]] == list(range(choices))
    assert {choice["finish_reason"] for choice in told["choices"]} == {"stop"}
    assert found.usage == Usage(600, answers * 40)
    assert told["usage"]["completion_tokens"] == answers * 40
    assert told["usage"]["total_tokens"] == 600 + answers * 40
    assert found.device_s > one.device_s
    assert found.first_token_at is not None
    assert found.started_at <= found.first_token_at <= found.finished_at


async def test_simulated_devices_stream_each_choice() -> None:
    told: list[dict[str, Any]] = []

    async def tell(chunk: dict[str, Any]) -> None:
        told.append(chunk)

    found = await simulated(tell, body=CHAT | {"n": 3, "stream": True})
    texts: Counter[int] = Counter()
    ends: dict[int, str | None] = {}
    for chunk in told:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += len(choice["delta"]["content"])
        ends[choice["index"]] = choice["finish_reason"]
    whole = {len(choice["message"]["content"]) for choice in found.response.body["choices"]}
    assert sorted(texts) == [0, 1, 2]
    assert set(texts.values()) == whole
    assert set(ends.values()) == {"stop"}


async def test_simulated_devices_write_no_more_answers_than_they_can() -> None:
    with pytest.raises(CallError) as refused:
        await simulated(body=CHAT | {"n": INPUTS_MAX + 1})
    assert (refused.value.code, refused.value.retry) == ("request_refused", "never")


async def test_answers_of_one_call_take_their_share_of_a_server() -> None:
    together = asyncio.Event()

    async def slowly(x: Exchange) -> None:
        await x.events()
        await together.wait()
        await asyncio.sleep(0.3)
        ended = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
        await x.event({"choices": [ended]})
        await x.end()

    async with serving(slowly) as server, backend_at(server.base_url) as backend:
        both = [asyncio.create_task(backend.execute(call(n=n))) for n in (9, 1)]
        await soon(_until(lambda: len(server.asked) == 2), "both ask")
        assert backend.load().variants["small-bf16"].running == 10
        together.set()
        many, one = await asyncio.gather(*both)
        assert backend.load().variants["small-bf16"].running == 0
        told = backend.load().variants["small-bf16"]
    # The time of several answers says nothing of a step: the one has taught as if it were alone.
    assert 0 < told.speed_known < 0.05
    took_s = many.finished_at - many.started_at
    assert OPTIONS[0].replicas == 1
    assert one.device_s == pytest.approx(took_s / 10, rel=0.5)
    assert many.device_s == pytest.approx(took_s * 9 / 10, rel=0.2)


async def _until(check: Any) -> None:
    while not check():  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)


async def _steps(transactor: Transactor) -> None:
    for _ in range(5):
        await transactor.step()


async def test_each_answer_takes_a_place_of_its_worker() -> None:
    yard, backend = Yard(), ScriptedBackend()
    for name, n in (("c0", 2), ("c1", 9), ("c2", 1), ("c3", 5)):
        place(yard, name, body=CHAT | {"n": n})
    worker, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: backend.running == ["c0", "c1"], "no place is left")
    await _steps(transactor)
    assert (worker.running, worker.queued) == (2, 2)
    assert worker.queued_of("yard-8b-fp8") == 6
    backend.finish("c0")
    await _steps(transactor)
    assert backend.running == ["c1"]
    backend.finish("c1")
    await step_until(transactor, lambda: backend.running == ["c2", "c3"], "the others")


async def test_the_pace_of_several_answers_is_that_of_one() -> None:
    yard, backend = Yard(), ScriptedBackend()
    place(yard, "c0", body=CHAT | {"n": 4})
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: bool(backend.running), "the call")
    backend.finish("c0", response=choices_of(4), usage=Usage(20, 40))
    await step_until(transactor, yard.results, "the result")
    (evidence,) = yard.evidence()
    assert evidence.got is not None
    assert evidence.got.tpot_s == pytest.approx(1.8 / 9)


def test_a_try_has_the_time_for_all_rounds_of_its_answers() -> None:
    one = make_profile(Yard().policy)
    many = replace(one, replies=10 * OPTION.max_batch)
    assert service_s(many, OPTION) > 8 * service_s(one, OPTION)
    assert service_s(replace(one, replies=OPTION.max_batch), OPTION) == service_s(one, OPTION)


@pytest.mark.parametrize(
    ("asked", "choices", "rounds", "each_tokens", "learned"),
    [
        ({"n": 2}, 2, 1, 20, 20.0),
        # The variant has places for four.
        ({"n": 20}, 20, 5, 2, 2.0),
        # A server that knows no `n` writes one reply, and it may not show all of `best_of`.
        ({"n": 20}, 1, 1, 40, 40.0),
        ({"n": 1, "best_of": 2}, 1, 1, 20, None),
    ],
)
async def test_what_a_server_wrote_counts_and_not_what_was_asked_for(
    asked: dict[str, int], choices: int, rounds: int, each_tokens: int, learned: float | None
) -> None:
    yard, backend, experience = Yard(), ScriptedBackend(), Experience(0.0)
    place(yard, "c0", body=CHAT | asked)
    worker = make_worker(yard, backend)
    log = MemoryLog(yard.cluster, "a")
    transactor = await yard.run(worker, log, observers=[Learning(experience)])
    await step_until(transactor, lambda: bool(backend.running), "the call")
    backend.finish("c0", response=choices_of(choices), usage=Usage(20, 40))
    await step_until(transactor, yard.results, "the result")
    (evidence,) = yard.evidence()
    assert evidence.got is not None
    assert evidence.got.tpot_s == pytest.approx(1.8 / (rounds * each_tokens - 1))
    told = [each.mean_tokens for each in experience.lengths.told()]
    assert told == ([] if learned is None else [learned])


async def test_a_second_run_expects_replies_of_the_length_of_one() -> None:
    asked, request = make_profile(Yard().policy), call(n=3).request
    for choices, tokens in ((3, 30), (1, 90), (0, 30)):
        response = choices_of(choices) if choices else Response(200, {})
        outcome = Outcome(response, Usage(10, 90), 0.0, 0.0, 1.0, 1.0)
        assert as_answered(replace(asked, replies=3), request, outcome).output_tokens == tokens
        assert as_answered(asked, request, outcome).output_tokens == 90
