"""Bad input on real Kafka: each ends with its reason, and its neighbours are served."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import confluent_kafka
import orjson
import pytest
import pytest_asyncio
from running_system import System, chat

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asyncio(loop_scope="module"),
]

NESTED = b'{"id": "deep", "body": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001


def raw(**fields: Any) -> bytes:
    return orjson.dumps(chat("bad") | fields)


DEAD_LETTERS: dict[str, tuple[bytes | None, str, str]] = {
    "not JSON": (b"{nonsense", "not_json", "not JSON"),
    "nested": (NESTED, "not_json", "not JSON"),
    "an array": (b"[]", "not_an_object", "list"),
    "too large": (raw(metadata="x" * 2_000_000), "too_large", "SHUNTER_REQUEST_BYTES_MAX"),
    "no id": (b'{"body": {"model": "m"}}', "invalid_request", "id: Field required"),
    "no body": (b'{"id": "x", "model": "m"}', "invalid_request", "body"),
    "duplicate field": (
        b'{"id": "a", "id": "b", "body": {"model": "llama-3.1-8b"}}',
        "duplicate_field",
        "'id'",
    ),
    "wrong type": (raw(id=5), "invalid_request", "id"),
    "misspelt constraint": (
        raw(constraints={"region": ["eu-west"]}),
        "invalid_request",
        "constraints: it has a field that is none of",
    ),
    "negative": (raw(hints={"input_tokens": -1}), "invalid_request", "hints.input_tokens"),
    "absurd": (
        raw(body={"model": "llama-3.1-8b", "max_tokens": 10**15}),
        "invalid_request",
        "body.max_tokens",
    ),
    "milliseconds": (raw(deadline=time.time() * 1000), "invalid_request", "deadline"),
    "tombstone": (None, "empty_value", "no value"),
    "not UTF-8": (b'{"id": "\xff"}', "not_json", "JSON"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    directory = tmp_path_factory.mktemp("system")
    async with System(kafka, f"bad-{os.getpid()}", directory) as system:
        system.start_all()
        # On a busy machine the start takes longer than a chat turn may wait.
        await system.warm_up()
        yield system


@pytest.mark.parametrize("kind", DEAD_LETTERS)
async def test_a_bad_record_is_dead_lettered_and_its_neighbours_are_served(
    system: System, kind: str
) -> None:
    value, reason, told = DEAD_LETTERS[kind]
    key = f"key of {kind}".encode()
    before, after = f"before {kind}", f"after {kind}"
    for record in (
        (orjson.dumps(chat(before)), before.encode()),
        (value, key),
        (orjson.dumps(chat(after)), after.encode()),
    ):
        await system.publish(record[0], key=record[1], partition=1, headers=[("own", b"\xff")])
    await system.wait_for_results([before, after])

    assert system.result(before)["status"] == "completed"
    assert system.result(after)["status"] == "completed"
    (letter,) = [r for r in system.dead_letters if r.key == key]
    headers = dict(letter.headers)
    assert letter.value == value
    assert headers["own"] == b"\xff"
    assert headers["shunter-reason"].decode() == reason
    assert told in headers["__connect.errors.exception.message"].decode()
    assert headers["__connect.errors.topic"].decode() == system.catalogue.requests
    assert headers["__connect.errors.partition"] == b"1"
    assert b"offset" in b" ".join(name.encode() for name in headers)


async def test_a_key_that_is_not_utf8_is_no_harm(system: System) -> None:
    await system.publish(orjson.dumps(chat("odd-key")), key=b"\xff\xfe")
    await system.wait_for_results(["odd-key"])
    assert system.result("odd-key")["status"] == "completed"


async def test_a_header_name_that_is_not_utf8_stops_nothing(system: System) -> None:
    # Only a client in C, or this one's Python parser, can send such a name.
    program = """
import asyncio, sys
from aiokafka import AIOKafkaProducer
class NotText(str):
    def encode(self, *_): return b"\\xff\\xfe"
async def main(servers, topic, *values):
    async with AIOKafkaProducer(bootstrap_servers=servers, linger_ms=100) as producer:
        sent = []
        for i, value in enumerate(values):
            headers = [(NotText("x"), b"v")] if i == 1 else []
            sent.append(await producer.send(
                topic, value.encode(), key=b"k%d" % i, partition=2, headers=headers))
        await asyncio.gather(*sent)
asyncio.run(main(*sys.argv[1:]))
"""
    ids = [f"named-{i}" for i in range(3)]
    values = [orjson.dumps(chat(i)).decode() for i in ids]
    publisher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        system.bootstrap_servers,
        system.catalogue.requests,
        *values,
        env=os.environ | {"AIOKAFKA_NO_EXTENSIONS": "1"},
    )
    assert await publisher.wait() == 0
    await system.wait_for_results([ids[0], ids[2]])
    (letter,) = [r for r in system.dead_letters if r.key == b"k1"]
    assert letter.value == values[1].encode()
    assert dict(letter.headers)["shunter-reason"] == b"header_not_utf8"
    assert ids[1] not in system.results


CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def publish_abroad(
    system: System, topic: str, codec: str, *records: tuple[bytes | None, bytes | None]
) -> None:
    """Publish by librdkafka, in one batch, each record with a null header value."""
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": system.bootstrap_servers,
            "compression.codec": codec,
            "linger.ms": 200,
        }
    )
    for key, value in records:
        producer.produce(topic, value, key, 3, headers=[("null", None), ("null", b"")])
    assert producer.flush(30) == 0


@pytest.mark.parametrize("codec", CODECS)
async def test_each_codec_of_another_client_is_read_with_its_nulls(
    system: System, codec: str
) -> None:
    direct, held = f"direct {codec}", f"held {codec}"
    # Else a batch this small goes uncompressed.
    padding = {"metadata": {"padding": "x" * 2000}}
    waits = chat(held, task="summarization", completion_window="3s", **padding)
    ids = orjson.dumps(chat(direct, **padding)), orjson.dumps(waits)
    await asyncio.to_thread(
        publish_abroad,
        system,
        system.catalogue.requests,
        codec,
        (None, ids[0]),
        (f"null value {codec}".encode(), None),
        (b"", ids[1]),
    )
    await asyncio.to_thread(
        publish_abroad,
        system,
        system.catalogue.cancellations,
        codec,
        (None, b"x" * 2000),
        (f"cancelled {codec}".encode(), b"x" * 2000),
    )
    await system.wait_for_results([direct, held])
    assert system.result(direct)["status"] == "completed"
    await system.wait_for_steps(f"cancelled {codec}", "cancel_requested")
    assert all(process.poll() is None for process in system.processes.values()), system.logs()


async def test_a_batch_that_unpacks_to_96_mib_is_a_dead_letter_by_its_offset(
    system: System,
) -> None:
    program = """
import asyncio, sys
from aiokafka import AIOKafkaProducer
async def main(servers, topic):
    async with AIOKafkaProducer(
        bootstrap_servers=servers, compression_type="gzip",
        max_request_size=200_000_000, max_batch_size=200_000_000,
    ) as producer:
        await producer.send_and_wait(topic, bytes(96 * 1024 * 1024), partition=2)
asyncio.run(main(*sys.argv[1:]))
"""
    topic = system.catalogue.requests
    publisher = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, system.bootstrap_servers, topic
    )
    assert await publisher.wait() == 0
    await system.publish(chat("after-bomb"), partition=2)
    await system.wait_for_results(["after-bomb"])
    letters = [dict(r.headers) for r in system.dead_letters]
    (letter,) = [r for r in letters if r["shunter-reason"] == b"undecodable_batch"]
    assert b"SHUNTER_BATCH_BYTES_MAX" in letter["__connect.errors.exception.message"]
    assert letter["__connect.errors.topic"].decode() == topic


async def test_a_deadline_in_the_past_expires(system: System) -> None:
    await system.publish(chat("late", deadline=time.time() - 5))
    await system.wait_for_results(["late"])
    result = system.result("late")
    assert result["status"] == "expired"
    assert "deadline passed" in result["error"]["message"]


@pytest.mark.parametrize(
    ("request_id", "fields", "code", "told"),
    [
        ("no-task", {"task": "juggling"}, "unknown_task", "'juggling'"),
        ("no-model", {"model": "gpt-17"}, "unknown_model", "'gpt-17'"),
        (
            "no-region",
            {"constraints": {"regions": ["mars"]}},
            "no_pool",
            "premium-eu is in a region that is not allowed",
        ),
        (
            "no-precision",
            {"constraints": {"precisions": ["fp4"]}},
            "no_pool",
            "at a precision that is not allowed",
        ),
    ],
)
async def test_a_valid_request_that_cannot_be_placed_is_rejected_with_the_reason(
    system: System, request_id: str, fields: dict[str, Any], code: str, told: str
) -> None:
    await system.publish(chat(request_id, metadata={"kept": [1, None]}, **fields))
    await system.wait_for_results([request_id])
    result = system.result(request_id)
    assert result["status"] == "rejected"
    assert result["error"]["code"] == code
    assert told in result["error"]["message"]
    assert result["metadata"] == {"kept": [1, None]}
    if code == "no_pool":
        assert result["error"]["details"].keys() == system.fleet["pools"].keys()
    assert system.steps(request_id) == ["rejected"]


async def test_a_garbage_traceparent_costs_nothing(system: System) -> None:
    garbage = [("traceparent", b"\xff" * 55), ("traceparent", b"00-zz-zz-00")]
    await system.publish(chat("untraced"), headers=garbage)
    await system.wait_for_results(["untraced"])
    result = system.result("untraced")
    assert result["status"] == "completed"
    assert result["trace_id"] is None


async def test_a_traceparent_reaches_the_result(system: System) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    header = f"00-{trace_id}-b7ad6b7169203331-01".encode()
    await system.publish(chat("traced"), headers=[("traceparent", header)])
    await system.wait_for_results(["traced"])
    assert system.result("traced")["trace_id"] == trace_id


async def test_a_client_cannot_place_its_own_request(system: System) -> None:
    forged = b'{"pool": "lpddr-us"}'
    await system.publish(
        chat("forged", constraints={"regions": ["eu-west"]}),
        headers=[("shunter-placement", forged), ("shunter-profile", forged)],
    )
    await system.wait_for_results(["forged"])
    assert system.result("forged")["placement"]["pool"] == "premium-eu"


async def test_a_cloud_event_lends_its_id(system: System) -> None:
    request = {k: v for k, v in chat("unused").items() if k != "id"}
    await system.publish(
        orjson.dumps(request),
        key=b"ce",
        headers=[
            ("ce_specversion", b"1.0"),
            ("ce_id", b"event-7"),
            ("ce_source", b"/app"),
            ("ce_type", b"inference.request"),
        ],
    )
    await system.wait_for_results(["event-7"])
    assert system.result("event-7")["status"] == "completed"


async def test_the_processes_said_nothing_worse_than_info(system: System) -> None:
    assert "Traceback" not in system.logs(), system.logs()
