"""The trace of a request on each of the six paths, read back from a real Jaeger."""

import asyncio
import os
import re
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from copy import deepcopy
from typing import Any
from urllib.parse import urlencode

import jaeger as real
import orjson
import pytest
import pytest_asyncio
from gateway_cases import door
from model_server import Exchange, good, serving
from running_system import FLEET, System, chat, eventually

from shunter.jaeger import Span, find_trace_ids, read_services, read_trace

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

TEXT = "Which track does this wagon go to?"
BAD_TEXT = "This one derails"
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HTTP_CLIENT = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"
SUMMARY = {"task": "summarization", "completion_window": "10m"}
# A real server is not as fast as the policy, which is that of a faster world, would have it.
PATIENT = {"slo": {"ttft_ms": 60_000, "tpot_ms": 5_000}, "completion_window": "10m"}
RELEASED = {"window", "full", "slack", "idle"}
DIRECT_POOLS = ("premium-eu", "flaky-eu")


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Jaeger]:
    program = real.binary()
    if program is None:
        pytest.skip("no Jaeger: set JAEGER_BIN to one (https://www.jaegertracing.io/download/)")
    with real.running(program, tmp_path_factory.mktemp("jaeger")) as found:
        yield found


async def flaky(x: Exchange) -> None:
    if BAD_TEXT in str(x.body):
        await x.json({"error": {"message": BAD_TEXT}}, status=500)
    else:
        await good(x)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    kafka: str, jaeger: real.Jaeger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """All six paths, each to its end, and every process stopped, so that all spans are sent."""
    async with serving(flaky) as server:
        fleet = deepcopy(FLEET)
        fleet["pools"]["flaky-eu"] = deepcopy(FLEET["pools"]["premium-eu"]) | {
            "backend": {"type": "openai", "base_url": server.base_url},
            "usd_per_hour": 0.01,
        }
        directory = tmp_path_factory.mktemp("system")
        # One process sends by HTTP, the others by gRPC.
        by_http = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.http,
        }
        async with System(
            *(kafka, f"jaeger-{os.getpid()}", directory),
            fleet=fleet,
            extra_env=jaeger.environment(),
            env_of={"premium-eu": by_http},
        ) as system:
            system.start_all()
            # Once both have served one, the paths of the others are certain.
            for pool in DIRECT_POOLS:
                await system.publish(chat(f"warm-{pool}", constraints={"pools": [pool]}, **PATIENT))
            await system.wait_for_results({f"warm-{pool}" for pool in DIRECT_POOLS}, 40)
            await publish_all(system)
            await ask_over_http(system, jaeger)
            ends = {"direct", "b-0", "b-1", "b-2", "fallback", "rejected", "expired"}
            await system.wait_for_results(ends, 20)
            await eventually(lambda: has_dead_letter(system), "the dead letter")
            await asyncio.to_thread(system.stop)
            yield system


async def publish_all(system: System) -> None:
    parent = [("traceparent", CLIENT.encode())]
    await system.publish(chat("direct", constraints={"pools": ["premium-eu"]}), headers=parent)
    both = {"pools": ["premium-eu", "flaky-eu"]}
    bad = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": BAD_TEXT}]}
    await system.publish(chat("fallback", constraints=both, body=bad, **PATIENT))
    for n in range(3):
        await system.publish(chat(f"b-{n}", constraints={"pools": ["lpddr-us"]}, **SUMMARY))
    await system.publish(chat("rejected", constraints={"regions": ["eu-north"]}))
    await system.publish(chat("expired", deadline=time.time() - 5.0))
    await system.publish(b'{"id": "no body"}', key=b"dead")


async def ask_over_http(system: System, jaeger: real.Jaeger) -> None:
    """Ask a gateway for a stream, as a client does that traces."""
    headers = {"traceparent": HTTP_CLIENT, "X-Shunter-Pools": "premium-eu"}
    async with door(system, **jaeger.environment()) as opened, opened.client() as client:
        stream = await client.chat.completions.create(
            model="llama-3.1-8b",
            messages=[{"role": "user", "content": TEXT}],
            max_tokens=8,
            stream=True,
            extra_headers=headers,
        )
        assert [piece async for piece in stream]


async def has_dead_letter(system: System) -> bool:
    await system.read()
    return bool(system.dead_letters)


def tree(spans: Sequence[Span], system: System) -> Any:
    """The names as a tree; the spans of queues on ingest topics are left out."""

    def below(parent_id: str) -> Any:
        here = [s for s in spans if (s.parent_id if s.parent_id in known else "") == parent_id]
        return [
            (s.name.replace(f"{system.prefix}.", ""), below(s.span_id))
            for s in sorted(here, key=lambda s: (s.start, s.end))
            if not is_ingest_queue(s)
        ]

    known = {span.span_id for span in spans}
    return below("")


def is_ingest_queue(span: Span) -> bool:
    return span.name == "queue" and "shunter.pool" not in span.attributes


def one(spans: Sequence[Span], name: str) -> Span:
    (found,) = [span for span in spans if re.fullmatch(name, span.name)]
    return found


async def trace_of(system: System, jaeger: real.Jaeger, name: str) -> list[Span]:
    return await read_trace(jaeger.page, system.result(name)["trace_id"])


def served(lane: str) -> Any:
    ran = [("chat llama-3.1-8b", []), ("send results", [])]
    return (f"send pool.{lane}", [("queue", []), (f"process pool.{lane}", ran)])


async def test_a_direct_request_says_where_why_how_long_and_on_what(
    system: System, jaeger: real.Jaeger
) -> None:
    spans = await trace_of(system, jaeger, "direct")
    assert tree(spans, system) == [("process requests", [served("premium-eu.direct")])]
    assert {span.trace_id for span in spans} == {CLIENT[3:35]}
    routed = one(spans, "process .*requests")
    assert routed.parent_id == CLIENT[36:52]
    assert {span.service for span in spans} == {"shunter-router", "shunter-worker"}
    assert routed.attributes["shunter.decision.reason"] == "only_candidate"
    assert routed.attributes["shunter.policy.version"]
    chosen, *refused = [event.attributes for event in routed.events]
    assert chosen["shunter.pool"] == "premium-eu"
    await system.catch_up()
    (decided,) = [
        e for e in system.evidence if (e["request_id"], e["step"]) == ("direct", "placed")
    ]
    estimated = decided["candidates"][0]
    for name in ("cost_usd", "finish_s", "chance"):
        assert chosen[f"shunter.candidate.{name}"] == pytest.approx(estimated[name]), name
        assert not any(f"shunter.candidate.{name}" in r for r in refused)
    reasons = {r["shunter.candidate.reason"] for r in refused}
    # The packaged policy's floor of quality is asked before.
    assert reasons == {"pool_not_allowed", "quality"}
    ran = one(spans, "chat llama-3.1-8b").attributes
    expected = {
        "shunter.pool": "premium-eu",
        "shunter.device": "h200",
        "shunter.model_variant": "llama-3.1-8b-fp8",
        "shunter.precision": "fp8",
        "shunter.region": "eu-west",
        "shunter.placement.path": "direct",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "llama-3.1-8b",
        "gen_ai.usage.output_tokens": system.result("direct")["usage"]["output_tokens"],
    }
    assert {name: ran.get(name) for name in expected} == expected
    assert ran["shunter.cost.usd"] == pytest.approx(
        system.result("direct")["cost"]["usd"], abs=1e-9
    )
    took = one(spans, "process .*direct").attributes
    assert took["messaging.system"] == "kafka"
    assert took["messaging.consumer.group.name"] == f"{system.prefix}.worker.premium-eu"
    assert {"messaging.destination.partition.id", "messaging.kafka.offset"} <= took.keys()


async def test_one_trace_from_http_to_the_server(system: System, jaeger: real.Jaeger) -> None:
    spans = await read_trace(jaeger.page, HTTP_CLIENT[3:35])
    routed = ("process requests", [served("premium-eu.direct")])
    asked = ("POST /v1/chat/completions", [("send requests", [routed])])
    assert tree(spans, system) == [asked]
    http = one(spans, "POST .*")
    assert (http.parent_id, http.service) == (HTTP_CLIENT[36:52], "shunter-gateway")
    assert http.attributes["http.response.status_code"] == 200
    assert http.attributes["http.route"] == "/v1/chat/completions"
    ran = one(spans, "chat llama-3.1-8b")
    assert http.start <= ran.start
    assert ran.end <= http.end


async def test_members_of_a_batch_and_the_batch_link_to_each_other(
    system: System, jaeger: real.Jaeger
) -> None:
    traces = {name: await trace_of(system, jaeger, name) for name in ("b-0", "b-1", "b-2")}
    for spans in traces.values():
        held = [("hold", [served("lpddr-us.batch")])]
        assert tree(spans, system) == [("process requests", [("send held", held)])]
    members = {name: one(spans, "send .*batch") for name, spans in traces.items()}
    batches = {link.trace_id for member in members.values() for link in member.links}
    linked = {}
    for trace_id in batches:
        (whole,) = await read_trace(jaeger.page, trace_id)
        assert whole.name == f"send {system.prefix}.pool.lpddr-us.batch"
        assert whole.attributes["messaging.batch.message_count"] == len(whole.links)
        assert whole.attributes["shunter.hold.release_reason"] in RELEASED
        assert whole.events
        linked |= {link.span_id: (link, whole) for link in whole.links}
    for name, member in members.items():
        link, whole = linked[member.span_id]
        assert link.attributes == {"messaging.message.id": name}
        run = one(traces[name], "process .*batch")
        for span in (member, run):
            (back,) = span.links
            assert (back.trace_id, back.span_id) == (whole.trace_id, whole.span_id)
            assert back.attributes["shunter.batch.id"] == whole.attributes["shunter.batch.id"]
    hold = one(traces["b-0"], "hold")
    assert hold.end - hold.start == pytest.approx(hold.attributes["shunter.hold.seconds"], abs=1e-3)
    assert hold.attributes["shunter.hold.release_reason"] in RELEASED
    assert {"shunter.hold.group", "shunter.deadline.slack_s"} <= hold.attributes.keys()


async def test_a_fallback_is_a_further_attempt_in_the_same_trace(
    system: System, jaeger: real.Jaeger
) -> None:
    spans = await trace_of(system, jaeger, "fallback")
    again = ("process reroutes", [served("premium-eu.direct")])
    parts = [("chat llama-3.1-8b", []), ("send reroutes", [again])]
    assert tree(spans, system) == [
        (
            "process requests",
            [
                (
                    "send pool.flaky-eu.direct",
                    [("queue", []), ("process pool.flaky-eu.direct", parts)],
                )
            ],
        )
    ]
    failed = one(spans, "process .*flaky-eu.direct")
    assert failed.error
    reason = system.result("fallback")["placement"]["fallbacks"][0]["reason"]
    assert failed.attributes["error.type"] == reason
    rerouted = one(spans, "process .*reroutes").attributes
    assert (rerouted["shunter.attempt"], rerouted["shunter.fallback.reason"]) == (2, reason)


@pytest.mark.parametrize(
    ("name", "code"), [("rejected", "no_pool"), ("expired", "deadline_passed")]
)
async def test_what_ends_without_an_answer_is_an_error_that_says_why(
    system: System, jaeger: real.Jaeger, name: str, code: str
) -> None:
    spans = await trace_of(system, jaeger, name)
    assert tree(spans, system) == [("process requests", [("send results", [])])]
    span = one(spans, "process .*requests")
    assert span.error == system.result(name)["error"]["message"]
    assert span.attributes["error.type"] == code


async def test_a_dead_letter_is_found_by_its_key(system: System, jaeger: real.Jaeger) -> None:
    (trace_id,) = await find_trace_ids(
        jaeger.page, "shunter-router", {"messaging.message.id": "dead"}
    )
    spans = await read_trace(jaeger.page, trace_id)
    assert tree(spans, system) == [("process requests", [("send dead-letters", [])])]
    assert one(spans, "process .*requests").attributes["error.type"] == "invalid_request"


async def test_no_text_of_requests_or_answers_is_in_any_trace(
    system: System, jaeger: real.Jaeger
) -> None:
    services = await read_services(jaeger.page)
    assert {"shunter-router", "shunter-worker"} <= set(services)
    told = ""
    for service in ("shunter-router", "shunter-worker"):
        told += await asyncio.to_thread(read, jaeger.page, service)
    assert "lpddr-us" in told
    for text in (TEXT, BAD_TEXT, system.result("b-0")["response"]["body"]["choices"][0]):
        assert (text if isinstance(text, str) else text["message"]["content"]) not in told


def read(page: str, service: str) -> str:
    """Whatever Jaeger has of a service, as it tells it."""
    query = {
        "query.service_name": service,
        "query.start_time_min": "2020-01-01T00:00:00Z",
        "query.start_time_max": "2100-01-01T00:00:00Z",
        "query.search_depth": 1000,
    }
    url = f"{page}/api/v3/traces?{urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own address
        return str(response.read(), "utf-8")


async def test_the_command_finds_the_trace_of_a_request(
    system: System, jaeger: real.Jaeger
) -> None:
    shown = await shunter_trace(jaeger, "direct", "--json")
    expected = await trace_of(system, jaeger, "direct")
    assert [span["span_id"] for span in orjson.loads(shown)] == [s.span_id for s in expected]


async def shunter_trace(jaeger: real.Jaeger, *arguments: str) -> bytes:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shunter", "trace", "--jaeger", jaeger.page, *arguments,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await program.communicate()
    assert program.returncode == 0
    return output
