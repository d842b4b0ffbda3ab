"""`shunter submit`: lines are published as they are, and followed to their ends."""

import asyncio
import io
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from client_commands import (
    ended,
    installation,
    logging_kept,
    producing,
    request,
    result,
    shunter,
    started,
    write,
)
from running_system import eventually

from shunter.client.kafka import read_by_key
from shunter.client.request_lines import check_lines, good_lines
from shunter.console import UserError
from topics import Catalogue, Evidence, Settings, Source, encode
from topics.records import headers as h

BYTES_MAX = 1024 * 1024
START = 1_800_000_000.0


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    with logging_kept():
        yield


@pytest.fixture
async def settings(kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return await installation(kafka, prefix, monkeypatch)


async def published(settings: Settings) -> dict[str, bytes]:
    """Return value by key of what stands on the ingest topic."""
    topic = Catalogue(settings).requests
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    partitions = [TopicPartition(topic, n) for n in range(settings.partitions)]
    await consumer.start()
    try:
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(partitions)
        found: dict[str, bytes] = {}
        while len(found) < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found |= {r.key.decode(): r.value for r in records}
        return found
    finally:
        await consumer.stop()


@asynccontextmanager
async def answering(settings: Settings, ends: dict[str, Any]) -> AsyncIterator[None]:
    """End each request that is published as ``ends`` says.

    With a status, or as ``dead`` or ``duplicate``, or not at all.
    """
    catalogue = Catalogue(settings)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest"
    )
    consumer.assign([TopicPartition(catalogue.requests, n) for n in range(settings.partitions)])

    async def answer(producer: AIOKafkaProducer) -> None:
        async for record in consumer:
            name = record.key.decode()
            end = ends.get(name)
            if end == "dead":
                headers = [(h.REASON, b"not_json")]
                await producer.send(
                    catalogue.dead_letters, record.value, key=record.key, headers=headers
                )
            elif end == "duplicate":
                source = Source(catalogue.requests, record.partition, record.offset)
                evidence = Evidence(name, "duplicate", START, "router/test", source)
                await producer.send(catalogue.evidence, encode(evidence), key=record.key)
            elif end is not None:
                value = encode(result(name, end))
                await producer.send(catalogue.results, value, key=record.key)

    await consumer.start()
    async with producing(settings) as producer:
        answers = asyncio.create_task(answer(producer))
        try:
            yield
        finally:
            answers.cancel()
            await asyncio.wait([answers])
            await consumer.stop()


class TestLines:
    def test_good_lines_keep_their_bytes(self) -> None:
        native = b'{ "id":"a" , "body":{"model":"m"},  "metadata":"\xc3\xa4"}'
        batch = b'{"custom_id":"b","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}'
        lines = io.BytesIO(native + b"\r\n\n" + batch)
        checked = check_lines(lines, bytes_max=BYTES_MAX)
        assert checked.bad == []
        lines.seek(0)
        assert list(good_lines(lines, checked)) == [(1, "a", native), (3, "b", batch)]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{nonsense", "not JSON"),
            (b'{"body": {"model": "m"}}', "id: Field required"),
            (request("x", wishes=1), "wishes: Extra inputs are not permitted"),
            (request("x", metadata="long" * 300), "the limit is 1,024"),
            (request("first"), "the id 'first' stands on line 1 already"),
        ],
    )
    def test_a_bad_line_is_named_with_its_reason(self, line: bytes, reason: str) -> None:
        checked = check_lines([request("first") + b"\n", line + b"\n"], bytes_max=1024)
        assert checked.ids == {1: "first"}
        assert [bad.number for bad in checked.bad] == [2]
        assert reason in checked.bad[0].reason


@pytest.mark.kafka
class TestSubmit:
    async def test_each_line_is_published_as_it_is_keyed_by_its_id(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        native = b'{ "id":"n-1",   "body":{"model":"m"}}'
        batch = b'{"custom_id":"c-1","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}'
        file = tmp_path / "requests.jsonl"
        file.write_bytes(native + b"\n" + batch + b"\n")

        outcome = await shunter("submit", file)

        assert outcome.exit_code == 0, outcome.output
        assert f"2 published to {settings.topic_prefix}.requests" in outcome.stdout
        assert await published(settings) == {"n-1": native, "c-1": batch}

    async def test_a_bad_line_keeps_all_from_being_published(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        file = tmp_path / "requests.jsonl"
        file.write_bytes(request("good") + b"\nnonsense\n")

        outcome = await shunter("submit", file)

        assert isinstance(outcome.exception, UserError)
        assert "nothing was published" in str(outcome.exception)
        assert f"{file}:2: the value is not JSON" in outcome.stderr
        assert await published(settings) == {}

    async def test_skip_bad_publishes_the_others_from_standard_input(
        self, settings: Settings
    ) -> None:
        lines = request("a") + b"\nnonsense\n" + request("b")
        outcome = await shunter("submit", "-", "--skip-bad", "--json", stdin=lines)
        assert json.loads(outcome.stdout) == {"submitted": 2, "skipped": 1}
        assert "standard input:2:" in outcome.stderr
        assert set(await published(settings)) == {"a", "b"}

    async def test_more_than_are_in_flight_at_once(self, settings: Settings) -> None:
        names = [f"r-{n}" for n in range(2500)]
        outcome = await shunter("submit", "-", stdin=b"\n".join(map(request, names)))
        assert "2500 published" in outcome.stdout
        assert set(await published(settings)) == set(names)

    async def test_without_topics_nothing_is_created(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcome = await shunter("submit", "-", "--topic-prefix", "not-there", stdin=request("a"))
        assert isinstance(outcome.exception, UserError)
        assert "no topic not-there.requests" in str(outcome.exception)


@pytest.mark.kafka
class TestWaiting:
    async def test_it_ends_when_each_request_has_its_end(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        ends = {"a": "completed", "b": "failed", "c": "dead", "d": "completed", "e": "expired"}
        output = tmp_path / "results.jsonl"
        lines = b"\n".join(map(request, ends))
        async with answering(settings, ends):
            outcome = await shunter(
                "submit", "-", "--wait", "--json", "--output", output, stdin=lines
            )
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout) == {
            "submitted": 5,
            "skipped": 0,
            "completed": 2,
            "failed": 1,
            "expired": 1,
            "rejected": 0,
            "cancelled": 0,
            "duplicate": 0,
            "dead_lettered": 1,
            "missing": 0,
        }
        assert "dead letter: c: not_json" in outcome.stderr
        written = [json.loads(line) for line in output.read_bytes().splitlines()]
        assert {each["id"]: each["status"] for each in written} == {
            name: end for name, end in ends.items() if end != "dead"
        }

    async def test_a_duplicate_is_not_waited_for(self, settings: Settings) -> None:
        """The result of the first of its id may have come long before."""
        ends = {"a": "completed", "b": "duplicate"}
        lines = b"\n".join(map(request, ends))
        async with answering(settings, ends):
            outcome = await shunter("submit", "-", "--wait", "--json", stdin=lines)
        assert outcome.exit_code == 0, outcome.output
        counts = json.loads(outcome.stdout)
        assert (counts["completed"], counts["duplicate"], counts["missing"]) == (1, 1, 0)

    async def test_what_is_missing_at_the_timeout_is_counted_and_fails(
        self, settings: Settings
    ) -> None:
        lines = request("a") + b"\n" + request("b")
        async with answering(settings, {"a": "completed"}):
            outcome = await shunter("submit", "-", "--wait", "--timeout", 2, "--json", stdin=lines)
        assert outcome.exit_code == 1
        counts = json.loads(outcome.stdout)
        assert (counts["completed"], counts["missing"]) == (1, 1)

    async def test_results_and_dead_letters_of_an_earlier_time_do_not_count(
        self, settings: Settings
    ) -> None:
        catalogue = Catalogue(settings)
        await write(settings, catalogue.results, "a", encode(result("a")))
        await write(settings, catalogue.dead_letters, "a", b"nonsense")
        outcome = await shunter(
            "submit", "-", "--wait", "--timeout", 1, "--json", stdin=request("a")
        )
        assert json.loads(outcome.stdout)["missing"] == 1

    async def test_ctrl_c_tells_how_far_it_has_come(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        file, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
        file.write_bytes(request("a") + b"\n" + request("b"))

        async def has_result() -> bool:
            return bool(await read_by_key(settings, Catalogue(settings).results, b"a"))

        async with answering(settings, {"a": "completed"}):
            command = await started("submit", file, "--wait", "--json", "--output", output)
            try:
                # The answer proves that both were published: it reads on for the second.
                await eventually(has_result, "the result of a")
                command.send_signal(signal.SIGINT)
                stdout, stderr = await asyncio.wait_for(command.communicate(), 10)
            finally:
                ended(command)
        assert command.returncode == 130, stderr
        assert json.loads(stdout)["submitted"] == 2
        assert json.loads(stdout)["missing"] >= 1


async def test_how_to_wait_without_waiting_is_refused() -> None:
    outcome = await shunter("submit", "-", "--timeout", 5)
    assert "add --wait" in str(outcome.exception)
