"""Answers of a model server cost processor time in proportion: none can hold the event loop."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest

from workers.backends.base import CallError
from workers.backends.openai.answers import Assembled
from workers.backends.openai.server_metrics import BYTES_MAX, read_load
from workers.backends.openai.sse import EVENT_BYTES_MAX, read_events

MIB = 1024 * 1024
RUNNING = "vllm:num_requests_running"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where this takes more processor time: that of others is not its fault."""
    began = time.process_time()
    yield
    assert time.process_time() - began <= seconds


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": "stop"}]}


def test_items_of_an_answer_are_found_by_their_index() -> None:
    assembled = Assembled("chat.completion")
    items = [[{"index": n, "id": side} for n in range(30_000)] for side in ("a", "b")]
    events = [orjson.dumps(delta(tool_calls=each)) for each in items]
    assert all(0.5 * EVENT_BYTES_MAX < len(each) < EVENT_BYTES_MAX for each in events)
    with within(2.0):
        for each in events:
            assembled.add(orjson.loads(each))
    (choice,) = assembled.body()["choices"]
    assert choice["message"]["tool_calls"] == items[1]


def test_items_that_come_one_by_one_are_found_as_soon() -> None:
    assembled = Assembled("chat.completion")
    with within(4.0):
        for n in range(30_000):
            assembled.add(delta(tool_calls=[{"index": n, "id": "a"}]))
    (choice,) = assembled.body()["choices"]
    assert len(choice["message"]["tool_calls"]) == 30_000


def test_text_grows_without_a_copy_for_each_piece() -> None:
    assembled, piece, pieces = Assembled("chat.completion"), "x" * 200, 80_000
    with within(4.0):
        for _ in range(pieces):
            assembled.add(delta(content=piece))
    (choice,) = assembled.body()["choices"]
    assert choice["message"]["content"] == piece * pieces


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.mark.parametrize("size", [8, 64 * 1024])
async def test_an_event_has_its_limit_however_its_lines_come(size: int) -> None:
    lines = b"data:x\n" * (2 * EVENT_BYTES_MAX // 7)
    events = read_events(in_pieces(lines, size), 8 * MIB)
    with within(4.0), pytest.raises(CallError, match=f"more than {EVENT_BYTES_MAX:,} bytes"):
        await anext(events)


@pytest.mark.parametrize("size", [1, 7, 64 * 1024])
async def test_a_long_line_may_come_in_small_pieces(size: int) -> None:
    value = b"x" * (EVENT_BYTES_MAX // 2)
    body = b"data: " + value + b"\r\n\r\ndata:1\ndata:\ndata:2\n\ndata:\n\n: no\n\ndata: last\n"
    with within(4.0):
        events = [event async for event in read_events(in_pieces(body, size), 8 * MIB)]
    assert events == [value, b"1\n\n2", b"last"]


@pytest.mark.parametrize(
    "line", ["", RUNNING + " 1", RUNNING + '{a="' + '\\"' * 30_000 + '"} 1', RUNNING * 9, "x" * 99]
)
def test_a_page_of_metrics_is_read_in_no_time(line: str) -> None:
    page = f"{line}\n" * (BYTES_MAX // (len(line) + 1))
    with within(0.25), contextlib.suppress(ValueError):
        read_load(page, {})


def test_series_of_many_engines_are_read() -> None:
    page = "".join(f'{RUNNING}{{engine="{n}",model_name="small"}} 2.0\n' for n in range(500))
    load = read_load(f"# TYPE {RUNNING} gauge\n{page}", {})
    assert load is not None
    assert load.running == 1000
