"""Answers as they come: in order, outside the transaction, and the result at the end inside it."""

import asyncio
import io
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from memory_log import MemoryLog
from model_server import Exchange, good, serving
from openai_cases import of_yard
from rich.console import Console
from running_system import System
from stream_cases import MODEL, START, Yard, make_profile, step_until
from worker_cases import place, worker_on

from shunter.client import submit
from shunter.client.answers import Printer, text_of
from shunter.client.kafka import Tail
from shunter.client.request_lines import check_lines
from shunter.client.result_files import ResultFiles
from shunter.client.submit import SubmitTally
from streams.engine.log import Partition, Record
from topics import Response, Result, StreamPiece, Timing, decode, encode
from workers.stage.chunks import Stream


def pieces(yard: Yard) -> list[StreamPiece]:
    records = yard.cluster.records(yard.catalogue.streams)
    return [decode(StreamPiece, record.value or b"") for record in records]


def streamed(**body: Any) -> dict[str, Any]:
    return {"body": {"model": MODEL, "messages": [], "stream": True} | body}


async def test_pieces_come_before_the_result_which_is_the_last_of_them() -> None:
    yard = Yard()
    place(yard, "c0", **streamed())
    place(yard, "c1")
    async with serving() as server, of_yard(yard, server.base_url) as backend:
        worker, _ = worker_on(yard, backend)
        transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
        await step_until(transactor, lambda: len(yard.results()) == 2, "the results")
    found = pieces(yard)
    assert {piece.id for piece in found} == {"c0"}, "nobody asked for the stream of c1"
    assert [(piece.attempt, piece.index) for piece in found] == [(1, n) for n in range(4)]
    assert [text_of(piece.chunk) for piece in found[:3]] == ["one ", "two ", "three"]
    assert found[-1].result == yard.results()["c0"]
    *early, end = yard.cluster.records(yard.catalogue.streams)
    result = next(r for r in yard.cluster.records(yard.catalogue.results) if r.key == b"c0")
    assert yard.cluster.transaction_of(end) is yard.cluster.transaction_of(result) is not None
    assert {yard.cluster.transaction_of(record) for record in early} == {None}


async def test_a_failure_ends_the_stream_too() -> None:
    async def refuse(x: Exchange) -> None:
        await x.json({"error": {"message": "no"}}, 400)

    yard = Yard()
    place(yard, "c0", **streamed())
    async with serving(refuse) as server, of_yard(yard, server.base_url) as backend:
        worker, _ = worker_on(yard, backend)
        transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
        await step_until(transactor, yard.results, "the result")
    (end,) = pieces(yard)
    assert end.result is not None
    assert (end.index, end.result.status) == (0, "failed")


class StuckSink:
    """A log that takes nothing."""

    def __init__(self, yard: Yard) -> None:
        self.clock = yard.clock
        self.asked = 0

    async def send(self, piece: StreamPiece) -> Any:
        self.asked += 1
        raise TimeoutError


async def test_a_stream_that_is_stuck_is_given_up_and_the_answer_goes_on() -> None:
    yard = Yard()
    sink = StuckSink(yard)
    stream = Stream(sink, make_profile(yard.policy))
    for _ in range(3):
        await stream.tell({"choices": []})
    await stream.finish()
    assert sink.asked == 1


def record_of(piece: StreamPiece) -> Record:
    return Record(Partition("streams", 0), 0, piece.id.encode(), encode(piece), [], 0)


def test_what_is_printed_says_whose_it_is_and_can_not_move_the_cursor() -> None:
    text = io.StringIO()
    printer = Printer(Console(file=text, force_terminal=False, width=40))

    def chunk(words: str) -> dict[str, Any]:
        return {"choices": [{"delta": {"content": words}}]}

    for name, index, words in [
        ("a", 0, "one "),
        ("a", 1, "two\x1b[2J"),
        ("b", 0, "other"),
        ("a", 2, " [bold]three"),
    ]:
        printer.take(record_of(StreamPiece(name, 1, index, START, chunk(words))))
    assert text.getvalue() == "[a] one two[2J\n[b] other\n[a]  [bold]three"


class ScriptedTail(Tail):
    """Gives what it was told to, poll by poll, and then nothing."""

    def __init__(self, *polls: list[Record]) -> None:
        self.polls = list(polls)

    async def poll(self, timeout_s: float) -> list[Record]:
        if self.polls:
            return self.polls.pop(0)
        await asyncio.sleep(min(timeout_s, 0.01))
        return []


@pytest.mark.parametrize("is_last", [True, False])
async def test_the_end_of_an_answer_is_printed_though_its_result_was_read_before(
    is_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are on partitions of two topics; one that never comes is not waited for for long."""
    catalogue = Yard().catalogue
    result = Result("a", "completed", Timing(START), response=Response(200, {}))

    def piece(number: int, **what: Any) -> Record:
        value = encode(StreamPiece("a", 1, number, START, **what))
        return Record(Partition(catalogue.streams, 0), number, b"a", value, [], 0)

    word = piece(0, chunk={"choices": [{"delta": {"content": "one"}}]})
    whole = Record(Partition(catalogue.results, 0), 0, b"a", encode(result), [], 0)
    polls = [[word], [whole], [], *([[piece(1, result=result)]] if is_last else [])]
    text, tally = io.StringIO(), SubmitTally(1, frozenset("a"), {"a"}, streamed={"a"})
    printer = Printer(Console(file=text, width=40))
    monkeypatch.setattr(submit, "LAST_PIECES_S", 5.0 if is_last else 0.05)
    await submit.follow(
        ScriptedTail(*polls),
        tally,
        catalogue,
        timeout_s=None,
        output=ResultFiles(None, None),
        changed=lambda: None,
        printer=printer,
    )
    # What has been printed to its end is waited for no longer.
    assert printer.ended == ({"a"} if is_last else set())
    assert text.getvalue() == ("[a] one\n(completed)\n" if is_last else "[a] one")
    assert tally.statuses["completed"] == 1


def test_lines_whose_answers_are_wanted_in_pieces_are_known() -> None:
    body = {"messages": [], "model": MODEL}
    lines = [
        orjson.dumps({"id": str(wish), "tenant": "t", "model": MODEL, "body": body | stream})
        for wish, stream in ((1, {"stream": True}), (2, {"stream": False}), (3, {}))
    ]
    checked = check_lines(lines, bytes_max=10_000)
    assert not checked.bad
    assert checked.streamed == {"1"}


@pytest.mark.kafka
async def test_submit_follows_tokens_as_they_come(kafka: str, prefix: str, tmp_path: Path) -> None:
    async def slow(x: Exchange) -> None:
        if x.body is not None and x.body.get("max_tokens") != 1:  # no probe
            await x.events()
            for word in ("one ", "two ", "three"):
                await x.event(x.piece(word))
                await asyncio.sleep(1.0)
            await x.event(x.piece(None, "stop"))
            await x.end()
        else:
            await good(x)

    lines = [
        {"id": "s-1", "body": {"model": "llama-3.1-8b", "messages": [], "stream": True}},
        {"id": "s-2", "body": {"model": "llama-3.1-8b", "messages": []}},
    ]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    async with serving(slow) as server:
        fleet = {
            "pools": {
                "here": {
                    "device": "h200",
                    "count": 1,
                    "region": "eu-west",
                    "serves": [
                        {
                            "model": "llama-3.1-8b",
                            "variant": "llama-3.1-8b-fp8",
                            "precision": "fp8",
                            "max_batch": 8,
                        }
                    ],
                    "backend": {"type": "openai", "base_url": server.base_url},
                }
            }
        }
        async with System(kafka, prefix, tmp_path, fleet=fleet, policy_speed=1.0) as system:
            system.start_all()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "shunter", "submit", str(tmp_path / "requests.jsonl")),
                *("--follow", "--timeout", "30"),
                env=os.environ
                | {"SHUNTER_BOOTSTRAP_SERVERS": kafka, "SHUNTER_TOPIC_PREFIX": prefix},
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            loop = asyncio.get_running_loop()
            told, at = b"", {}
            while piece := await process.stdout.read(4096):
                told += piece
                for word in (b"one ", b"two ", b"three", b"(completed)"):
                    if word in told:
                        at.setdefault(word, loop.time())
            assert await process.wait() == 0, system.logs()
    assert b"[s-1] one two three\n(completed)\n" in told
    assert b"[s-2]" not in told
    # Each was printed when it came, and not with the answer.
    assert at[b"two "] - at[b"one "] > 0.5
    assert at[b"(completed)"] - at[b"two "] > 0.5
