"""`shunter submit`: lines are published as they are, and followed to their ends."""

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from client_commands import (
    ended,
    installation,
    producing,
    request,
    result,
    shunter,
    started,
    write,
)
from running_system import eventually

from shunter.client.kafka import read_by_key
from shunter.client.line_wishes import with_wishes
from shunter.client.request_lines import check_lines, good_lines
from shunter.client.result_files import ResultFiles
from shunter.console import UserError
from topics import Catalogue, Evidence, Settings, Source, encode, parse_request
from topics.records import headers as h

BYTES_MAX = 1024 * 1024
START = 1_800_000_000.0


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
            (request("x", wishes=1), "it has a field that is none of"),
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

    async def test_a_pipe_is_read_once(self, settings: Settings) -> None:
        """As a shell names one in `shunter submit <(...)`."""
        reading, writing = os.pipe()
        os.write(writing, request("a") + b"\n" + request("b"))
        os.close(writing)
        outcome = await shunter("submit", f"/dev/fd/{reading}")
        os.close(reading)
        assert "2 published" in outcome.stdout
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
        assert outcome.exit_code == 3, outcome.output
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

    @pytest.mark.parametrize(
        ("end", "code"),
        [("completed", 0), ("failed", 3), ("rejected", 3), ("cancelled", 3), ("dead", 3)],
    )
    async def test_the_exit_code_says_whether_all_were_completed(
        self, settings: Settings, end: str, code: int
    ) -> None:
        lines = request("a") + b"\n" + request("b")
        async with answering(settings, {"a": "completed", "b": end}):
            outcome = await shunter("submit", "-", "--wait", stdin=lines)
        assert outcome.exit_code == code, outcome.output

    async def test_results_as_batch_output_in_order(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        ends = {"a": "completed", "b": "expired", "c": "dead", "d": "completed"}
        output, errors = tmp_path / "output.jsonl", tmp_path / "errors.jsonl"
        lines = b"\n".join(map(request, ends))
        options = ("--output", output, "--errors", errors, "--format", "openai-batch", "--in-order")
        async with answering(settings, ends):
            outcome = await shunter("submit", "-", "--wait", *options, stdin=lines)
        assert outcome.exit_code == 3, outcome.output
        good = [json.loads(line) for line in output.read_bytes().splitlines()]
        bad = [json.loads(line) for line in errors.read_bytes().splitlines()]
        assert [each["custom_id"] for each in good] == ["a", "d"]
        assert good[0]["response"]["body"] == {"answer": "forty-two"}
        assert {each["custom_id"]: each["error"]["code"] for each in bad} == {
            "b": "batch_expired",
            "c": "not_json",
        }

    async def test_options_for_all_lines_are_published_in_them(self, settings: Settings) -> None:
        options = ("--tenant", "acme", "--region", "eu-west", "--constraint", "precisions=fp8")
        outcome = await shunter("submit", "-", *options, stdin=request("a"))
        assert outcome.exit_code == 0, outcome.output
        value = (await published(settings))["a"]
        assert json.loads(value)["tenant"] == "acme"
        assert json.loads(value)["constraints"] == {"regions": ["eu-west"], "precisions": ["fp8"]}

    async def test_a_duplicate_is_not_waited_for(self, settings: Settings) -> None:
        """The result of the first of its id may have come long before."""
        ends = {"a": "completed", "b": "duplicate"}
        lines = b"\n".join(map(request, ends))
        async with answering(settings, ends):
            outcome = await shunter("submit", "-", "--wait", "--json", stdin=lines)
        assert outcome.exit_code == 3, outcome.output
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
                stdout, stderr = await asyncio.wait_for(command.communicate(), 90)
            finally:
                ended(command)
        assert command.returncode == 130, stderr
        assert json.loads(stdout)["submitted"] == 2
        assert json.loads(stdout)["missing"] >= 1


async def test_how_to_wait_without_waiting_is_refused() -> None:
    outcome = await shunter("submit", "-", "--timeout", 5)
    assert "add --wait" in str(outcome.exception)


class TestLinesWithWishes:
    WISHES: ClassVar[dict[str, Any]] = {
        "tenant": "acme",
        "completion_window": "2h",
        "service_tier": "flex",
        "constraints": {"regions": ["eu-west"], "precisions": ["fp8"]},
    }

    @pytest.mark.parametrize(
        "line",
        [
            b'{ "id":"a", "body":{"model":"m","seed":12345678901234567890123} }\n',
            b'{"custom_id":"a","url":"/v1/completions","body":{"model":"m","x":1.0e-3}}',
        ],
    )
    def test_they_are_written_into_each(self, line: bytes) -> None:
        (found,) = with_wishes([line], self.WISHES)
        request = parse_request(found.removesuffix(b"\n"), bytes_max=BYTES_MAX)
        assert request.tenant == "acme"
        assert request.completion_window == "2h"
        assert request.service_tier == "flex"
        assert request.constraints.regions == ["eu-west"]
        body = line[line.index(b'"body":') :].split(b"}")[0]
        assert body in found

    @pytest.mark.parametrize(
        "own",
        [
            {"tenant": "b", "deadline": START, "constraints": {"regions": []}},
            {"tenant": "b", "completion_window": "1h", "constraints": {"regions": []}},
        ],
    )
    @pytest.mark.parametrize("is_batch", [False, True])
    def test_what_a_line_says_itself_stays(self, own: dict[str, Any], is_batch: bool) -> None:
        body = {"model": "m", "service_tier": "priority"}
        line = {"id": "a", "body": body} | own
        if is_batch:
            line = {"custom_id": "a", "url": "/v1/completions", "body": body, "shunter": own}
        (found,) = with_wishes([json.dumps(line).encode()], self.WISHES)
        request = parse_request(found, bytes_max=BYTES_MAX)
        assert request.tenant == "b"
        assert request.service_tier == "priority"
        assert request.deadline == own.get("deadline")
        assert request.completion_window == own.get("completion_window")
        assert request.constraints.regions == []
        assert request.constraints.precisions == ["fp8"]

    @pytest.mark.parametrize("line", [b"nonsense\n", b"\n", b'{"id":"a","id":"b"}'])
    def test_what_is_no_request_stays_as_it_is(self, line: bytes) -> None:
        assert list(with_wishes([line], self.WISHES)) == [line]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--tier", "fastest"], "service_tier"),
            (["--deadline", "soon"], "completion_window"),
            (["--constraint", "regions"], "NAME=VALUE"),
            (["--constraint", "wishes=1"], "--constraint: has a name that is not a field"),
            (["--errors", "x"], "add --wait"),
            (["--wait", "--errors", "x", "--output", "x"], "one file"),
        ],
    )
    async def test_options_that_no_request_could_have(self, options: list[str], told: str) -> None:
        outcome = await shunter("submit", "-", *options, stdin=request("a"))
        assert isinstance(outcome.exception, UserError)
        assert told in str(outcome.exception)


class TestResultFiles:
    def test_in_order_and_as_they_end(self) -> None:
        names = ["a", "b", "c", "d"]
        for order, wanted in ((names, ["a", "b", "d"]), (None, ["d", "b", "a"])):
            output, errors = io.BytesIO(), io.BytesIO()
            files = ResultFiles(output, errors, as_batch=True, order=order)
            files.add(result("d"), b"")
            files.add(result("b", "cancelled"), b"")
            if order:
                assert not output.getvalue()
            files.add(result("a"), b"")
            files.finish({"c": ("not_json", "a dead letter")})
            good = [json.loads(line)["custom_id"] for line in output.getvalue().splitlines()]
            bad = [json.loads(line) for line in errors.getvalue().splitlines()]
            assert good == [name for name in wanted if name != "b"]
            assert [(each["custom_id"], each["error"]["code"]) for each in bad] == [
                ("b", "batch_cancelled"),
                ("c", "not_json"),
            ]

    def test_native_results_may_have_a_file_of_errors_too(self) -> None:
        output, errors = io.BytesIO(), io.BytesIO()
        files = ResultFiles(output, errors)
        files.add(result("a"), b"A")
        files.add(result("b", "failed"), b"B")
        files.finish({"c": ("not_json", "")})
        assert (output.getvalue(), errors.getvalue()) == (b"A\n", b"B\n")
