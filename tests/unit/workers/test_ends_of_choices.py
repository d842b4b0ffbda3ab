"""The end of a stream of several choices: each has its own, or the server says that all ended."""

from typing import Any

import pytest
from model_server import Exchange, serving
from openai_cases import backend_at, call

from workers.backends.base import CallError


def piece(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


async def one_of_two(x: Exchange) -> None:
    """End the first choice while the second goes on."""
    await x.events()
    await x.event(piece(0, "short", "stop"))
    await x.event(piece(1, "a longer answer that goes"))


async def test_a_choice_that_is_cut_off_is_no_answer_though_another_ended() -> None:
    async def stops(x: Exchange) -> None:
        await one_of_two(x)
        await x.chunk(b"")

    async with serving(stops) as server, backend_at(server.base_url) as backend:
        with pytest.raises(CallError) as cut:
            await backend.execute(call(n=2))
    assert (cut.value.code, cut.value.retry) == ("connection_lost", "elsewhere")


async def test_a_server_that_says_that_all_ended_need_not_say_it_of_each_choice() -> None:
    async def as_litellm_does(x: Exchange) -> None:
        await one_of_two(x)
        await x.end()

    async with serving(as_litellm_does) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call(n=2))
    ends = [choice["finish_reason"] for choice in outcome.response.body["choices"]]
    assert ends == ["stop", None]


async def test_choices_that_all_ended_are_an_answer_without_a_last_word() -> None:
    async def all_end(x: Exchange) -> None:
        await one_of_two(x)
        await x.event(piece(1, " on", "length"))
        await x.chunk(b"")

    async with serving(all_end) as server, backend_at(server.base_url) as backend:
        outcome = await backend.execute(call(n=2))
    ends = [choice["finish_reason"] for choice in outcome.response.body["choices"]]
    assert ends == ["stop", "length"]
