"""`shunter topics`, `cancel`, `results` and `audit`: what they read and what they say."""

import asyncio
import json
import signal
from pathlib import Path

import pytest
from client_commands import (
    ended,
    evidence,
    installation,
    producing,
    result,
    shunter,
    started,
    write,
)

from shunter.client.kafka import read_by_key
from shunter.console import UserError
from streams.kafka.writer import partition_of
from topics import Cancellation, Catalogue, Settings, encode, parse_cancellation

FLEET = """\
pools:
  premium-eu:
    device: h200
    count: 1
    region: eu-west
    lanes: [direct, batch]
    serves:
      - {model: llama-3.1-8b, variant: llama-3.1-8b-fp8, precision: fp8, max_batch: 64}
    backend: {type: simulated}
"""


@pytest.fixture
async def settings(kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return await installation(kafka, prefix, monkeypatch)


@pytest.mark.kafka
class TestReadByKey:
    async def test_it_reads_all_of_a_key_and_nothing_else(self, settings: Settings) -> None:
        topic = Catalogue(settings).results
        names = [f"r-{n}" for n in range(40)]
        for round_number in (b"1", b"2"):
            async with producing(settings) as producer:
                for name in names:
                    await producer.send_and_wait(topic, round_number, key=name.encode())
        for name in names[:8]:
            found = await read_by_key(settings, topic, name.encode())
            assert [record.value for record in found] == [b"1", b"2"], name

    async def test_what_was_aborted_is_not_read(self, settings: Settings) -> None:
        topic, prefix = Catalogue(settings).results, settings.topic_prefix
        await write(settings, topic, "a", b"before")
        async with producing(settings, transactional_id=f"{prefix}-t") as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"aborted", key=b"a")
            await producer.abort_transaction()
        found = await read_by_key(settings, topic, b"a")
        assert [record.value for record in found] == [b"before"]

    def test_the_partition_is_that_of_the_java_client(self) -> None:
        # murmur2 of Kafka's own test vectors (UtilsTest.testMurmur2), made positive, modulo 1000.
        vectors = {
            b"21": -973932308,
            b"foobar": -790332482,
            b"a-little-bit-long-string": -985981536,
        }
        for key, murmur2 in vectors.items():
            assert partition_of(key, 1000) == (murmur2 & 0x7FFFFFFF) % 1000


@pytest.mark.kafka
class TestResults:
    async def test_the_result_of_one_request(self, settings: Settings) -> None:
        topic = Catalogue(settings).results
        await write(settings, topic, "r-1", encode(result("r-1")))
        await write(settings, topic, "r-2", encode(result("r-2", "failed")))

        shown = await shunter("results", "--request", "r-1")
        as_json = await shunter("results", "--request", "r-1", "--json")

        assert shown.exit_code == 0, shown.output
        for part in ("completed", "lpddr-eu", "int8", "eu-west", "$0.0000123", "forty-two"):
            assert part in shown.stdout
        assert as_json.stdout.encode() == encode(result("r-1")) + b"\n"

    async def test_results_as_lines_of_batch_output(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        topic, errors = Catalogue(settings).results, tmp_path / "errors.jsonl"
        await write(settings, topic, "r-1", encode(result("r-1")))
        await write(settings, topic, "r-2", encode(result("r-2", "expired")))
        options = ("--format", "openai-batch", "--errors", errors)

        one = await shunter("results", "--request", "r-1", *options)
        other = await shunter("results", "--request", "r-2", *options)

        assert one.exit_code == other.exit_code == 0, (one.output, other.output)
        said = json.loads(one.stdout)
        assert (said["custom_id"], said["response"]["status_code"]) == ("r-1", 200)
        assert other.stdout == ""
        assert json.loads(errors.read_bytes())["error"]["code"] == "batch_expired"
        refused = await shunter("results", "--errors", errors)
        assert "--format openai-batch" in str(refused.exception)

    async def test_no_result_is_told(self, settings: Settings) -> None:
        outcome = await shunter("results", "--request", "nobody")
        assert isinstance(outcome.exception, UserError)
        assert "there is no result of request 'nobody'" in str(outcome.exception)

    async def test_results_are_followed_until_ctrl_c(self, settings: Settings) -> None:
        topic = Catalogue(settings).results
        await write(settings, topic, "old", encode(result("old")), b"not a result")
        command = await started("results", "--from-beginning")
        assert command.stdout is not None
        try:
            async with asyncio.timeout(90):
                assert b"status" in await command.stdout.readline()
                assert b"old" in await command.stdout.readline()
                await write(settings, topic, "new", encode(result("new", "expired")))
                line = (await command.stdout.readline()).split()
            command.send_signal(signal.SIGINT)
            _, stderr = await asyncio.wait_for(command.communicate(), 90)
        finally:
            ended(command)
        assert line[:5] == [b"new", b"expired", b"lpddr-eu", b"llama-3.1-8b-int8", b"batch"]
        assert line[5:] == [b"1.500", b"0.0000123"]
        assert b"is left out: not JSON" in stderr
        assert command.returncode == 0


@pytest.mark.kafka
class TestAudit:
    async def test_the_story_of_one_request(self, settings: Settings) -> None:
        topic = Catalogue(settings).evidence
        for name in ("r-1", "r-2"):
            await write(settings, topic, name, *map(encode, evidence(name)[::-1]))

        shown = await shunter("audit", "show", "r-1")
        as_json = await shunter("audit", "show", "r-1", "--json")

        assert shown.exit_code == 0, shown.output
        assert "request r-1" in shown.stdout
        assert "r-2" not in shown.stdout
        assert as_json.stdout.encode() == encode(evidence("r-1")) + b"\n"

    async def test_an_unknown_id_is_told(self, settings: Settings) -> None:
        outcome = await shunter("audit", "show", "nobody")
        assert isinstance(outcome.exception, UserError)
        assert "nothing is known of request 'nobody'" in str(outcome.exception)

    async def test_a_record_that_is_no_evidence_hides_no_other(self, settings: Settings) -> None:
        topic = Catalogue(settings).evidence
        await write(settings, topic, "r-1", b"nonsense", *map(encode, evidence()))
        outcome = await shunter("audit", "show", "r-1", "--json")
        assert len(json.loads(outcome.stdout)) == 4
        assert "is left out: not JSON" in outcome.stderr


@pytest.mark.kafka
class TestTopics:
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Path:
        file = tmp_path / "fleet.yaml"
        file.write_text(FLEET)
        return file

    async def test_describe_fails_until_apply_has_created_all(
        self, settings: Settings, fleet: Path
    ) -> None:
        before = await shunter("topics", "describe", "--fleet", fleet)
        applied = await shunter("topics", "apply", "--fleet", fleet, "--json")
        after = await shunter("topics", "describe", "--fleet", fleet, "--json")

        assert before.exit_code == 1
        assert "2 missing: `shunter topics apply` creates them" in before.stderr
        lanes = [f"{settings.topic_prefix}.pool.premium-eu.{lane}" for lane in ("direct", "batch")]
        created = [t["name"] for t in json.loads(applied.stdout)["topics"] if t["state"] != "ok"]
        assert (applied.exit_code, created) == (0, lanes)
        assert (after.exit_code, json.loads(after.stdout)["complete"]) == (0, True)

    async def test_differences_are_warned_of_with_the_remedy(
        self, settings: Settings, fleet: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHUNTER_PARTITIONS", "7")
        applied = await shunter("topics", "apply", "--fleet", fleet)
        described = await shunter("topics", "describe", "--fleet", fleet)
        assert (applied.exit_code, described.exit_code) == (0, 1)
        assert "partitions: 7, 4" in applied.stdout
        assert "set SHUNTER_PARTITIONS (now 7) to the number found" in applied.stderr


async def test_a_broker_that_is_not_there_is_one_message() -> None:
    outcome = await shunter("topics", "describe", "--bootstrap-servers", "127.0.0.1:1")
    assert isinstance(outcome.exception, UserError)
    assert "no Kafka broker answers at 127.0.0.1:1" in str(outcome.exception)
    assert outcome.output == ""


@pytest.mark.parametrize(
    "command", ["submit", "results", "topics apply", "topics describe", "audit show"]
)
async def test_the_help_of_each_command_has_an_example(command: str) -> None:
    outcome = await shunter(*command.split(), "--help")
    assert f"Example: shunter {command}" in outcome.output


async def test_what_is_no_id_is_not_cancelled() -> None:
    outcome = await shunter("cancel", "x" * 129)
    assert isinstance(outcome.exception, UserError)
    assert "129 characters" in str(outcome.exception)


@pytest.mark.kafka
async def test_a_cancellation_is_keyed_by_the_request(settings: Settings) -> None:
    outcome = await shunter("cancel", "a", "--reason", "the user has left", "--json")
    assert outcome.exit_code == 0, outcome.output
    (record,) = await read_by_key(settings, Catalogue(settings).cancellations, b"a")
    assert parse_cancellation(record.key, record.value) == ("a", Cancellation("the user has left"))
