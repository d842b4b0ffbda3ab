"""One trace per request, through every stage: in memory, where what was aborted can be seen too."""

from typing import Any

import orjson
import pytest
from hold_cases import make_batcher, run
from memory_log import Crash, MemoryLog, ProcessKilledError
from metrics_cases import make_metrics, read
from stream_cases import (
    POLICY,
    START,
    TRACEPARENT,
    Yard,
    drain,
    header,
    heartbeat,
    request,
    step_until,
)
from stream_cases import route as route_plain
from trace_cases import TracedYard, said, span_id_of, trace_id_of, tree
from worker_cases import ScriptedBackend, serve

from policies import Situation
from shunter.client.spans import SubmitSpans
from streams.engine.log import Outgoing
from streams.metrics import registry as m
from streams.metrics.gauges import span_gauges
from streams.tracing.sampling import Sampling
from topics import VariantStatus

CLIENT = TRACEPARENT.decode()
UNSAMPLED = (CLIENT[:-2] + "00").encode()
DIRECT = "yard.pool.premium-eu.direct"
BATCH = "yard.pool.boards-us.batch"
SUMMARY: dict[str, Any] = {"task": "summarization"}
ONLY_EU: dict[str, Any] = {"constraints": {"pools": ["premium-eu"]}}


async def route(yard: TracedYard) -> None:
    yard.cluster.members.clear()
    await drain(await yard.run(yard.router()))


async def serve_one(yard: TracedYard, name: str, end: Any) -> None:
    """Let a worker of premium-eu run one request to its end."""
    backend = ScriptedBackend()
    _, transactor = await serve(yard, backend)
    yard.clock.at += 1.0
    await step_until(transactor, lambda: name in backend.running, "it runs")
    yard.clock.at += 2.0
    end(backend)
    before = len(yard.cluster.records(yard.catalogue.evidence))
    await step_until(
        transactor,
        lambda: len(yard.cluster.records(yard.catalogue.evidence)) > before,
        "it has ended",
    )
    await transactor.stop()


@pytest.mark.parametrize("timestamp_ms", [-1, -86_400_000, int(START + 1) * 1000, 2**63 - 1])
async def test_a_record_without_a_time_or_with_one_ahead_begins_its_trace_when_it_is_read(
    timestamp_ms: int,
) -> None:
    yard = TracedYard()
    value = orjson.dumps(request(id="c1"))
    yard.cluster.publish(Outgoing(yard.catalogue.requests, None, value, [], 0), timestamp_ms)
    await route(yard)
    (span,) = [span for span in yard.spans() if span.name == "process yard.requests"]
    assert span.start_time == START * 1e9


async def test_a_direct_request_is_one_trace_below_the_span_of_its_client() -> None:
    yard = TracedYard()
    yard.publish(headers=[("traceparent", TRACEPARENT)], id="c1")
    await route(yard)
    await serve_one(yard, "c1", lambda backend: backend.finish("c1"))

    spans = yard.trace(CLIENT[3:35])
    assert len(spans) == len(yard.spans())
    assert tree(spans) == [
        (
            "process yard.requests",
            [
                (
                    f"send {DIRECT}",
                    [
                        ("queue", []),
                        (
                            f"process {DIRECT}",
                            [("chat yard-8b", []), ("send yard.results", [])],
                        ),
                    ],
                )
            ],
        )
    ]
    routed = yard.span("process yard.requests")
    assert routed.parent is not None
    assert f"{routed.parent.span_id:016x}" == CLIENT[36:52]
    assert yard.results()["c1"].trace_id == CLIENT[3:35]


async def test_the_inference_has_the_names_of_the_genai_conventions() -> None:
    yard = TracedYard()
    body = {
        "model": "yard-8b",
        "messages": [],
        "n": 2,
        "seed": 7,
        "max_tokens": 12,
        "temperature": 0,
        "response_format": {"type": "json_object"},
        "top_p": "much",
    }
    yard.publish(id="c1", body=body, session="talk-1")
    await route(yard)
    await serve_one(yard, "c1", lambda backend: backend.finish("c1"))
    told = yard.span("chat yard-8b").attributes or {}
    found = {name: value for name, value in told.items() if name.startswith("gen_ai.")}
    # Each is in the registry of open-telemetry/semantic-conventions-genai.
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "shunter",
        "gen_ai.request.model": "yard-8b",
        "gen_ai.response.model": "yard-8b-fp8",
        "gen_ai.conversation.id": "talk-1",
        "gen_ai.output.type": "json",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.2,
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }


async def test_submit_begins_the_trace_once_the_request_is_acknowledged() -> None:
    yard = TracedYard()
    spans = SubmitSpans(yard.telemetry, yard.catalogue.requests, yard.clock)
    yard.publish(headers=spans.begin("c1"), id="c1")
    assert not yard.spans()
    yard.clock.at += 0.5
    spans.end()
    await route(yard)
    assert tree(yard.spans()) == [
        (
            "send yard.requests",
            [("queue", []), ("process yard.requests", [(f"send {DIRECT}", [])])],
        )
    ]
    assert said(yard.span("queue"), "shunter.queue.seconds") == [0.5]


async def test_what_waited_for_the_router_shows_it() -> None:
    yard = TracedYard()
    yard.publish(id="c1")
    yard.clock.at += 2.0
    await route(yard)
    assert tree(yard.spans()) == [
        ("process yard.requests", [("queue", []), (f"send {DIRECT}", [])])
    ]
    queue = yard.span("queue")
    assert (queue.end_time or 0) - (queue.start_time or 0) == 2_000_000_000


async def test_the_decision_shows_every_candidate_and_why() -> None:
    yard = TracedYard()
    yard.publish(id="c1")
    await route(yard)
    span = yard.span("process yard.requests")
    assert said(span, "shunter.decision", "shunter.decision.reason", "shunter.pool") == [
        "placed", "cheapest_in_time", "premium-eu",
    ]  # fmt: skip
    assert said(span, "shunter.policy.version") == [yard.policy.version]
    assert said(span, "messaging.destination.partition.id", "messaging.kafka.offset") == ["0", 0]
    chosen, other, refused = (event.attributes or {} for event in span.events)
    assert chosen["shunter.candidate.is_chosen"] is True
    assert chosen["shunter.candidate.reason"] == "cheapest_in_time"
    assert 0 < chosen["shunter.candidate.cost_usd"] < other["shunter.candidate.cost_usd"]  # type: ignore[operator]
    assert chosen["shunter.candidate"] == "premium-eu yard-8b-fp8 direct: cheapest_in_time"
    assert {"shunter.candidate.finish_s", "shunter.candidate.chance"} <= chosen.keys()
    assert (other["shunter.pool"], other["shunter.candidate.reason"]) == (
        "premium-us", "costs_more",
    )  # fmt: skip
    assert (refused["shunter.pool"], refused["shunter.candidate.reason"]) == ("boards-us", "lane")
    assert refused["shunter.candidate"] == "boards-us yard-8b-int8 direct: lane"
    assert "shunter.candidate.cost_usd" not in refused


async def test_a_span_tells_the_figures_of_its_evidence() -> None:
    yard = TracedYard()
    for ttft_ms in range(5, 85, 2):
        yard.publish(id=f"c{ttft_ms}", slo={"ttft_ms": ttft_ms})
    await route(yard)
    evidence = {each.request_id: each for each in yard.evidence("placed")}
    assert len({each.candidates[0].chance for each in evidence.values()}) > 10
    for span in yard.spans():
        if span.name != "process yard.requests":
            continue
        told = [e.attributes or {} for e in span.events]
        (request_id,) = said(span, "messaging.message.id")
        candidates = evidence.pop(request_id).candidates
        for name in ("cost_usd", "finish_s", "chance"):
            assert [each.get(f"shunter.candidate.{name}") for each in told] == [
                getattr(each, name) for each in candidates
            ], name
    assert not evidence


class CrowdedYard(TracedYard):
    """Work on premium-eu makes it cheap to join, and its places scarce."""

    def situation(self) -> Situation:
        found = super().situation()
        slots = self.options.by_pool["premium-eu"][0].max_batch
        variants = {"yard-8b-fp8": VariantStatus(running=slots - 1)}
        report = heartbeat(self.options, "premium-eu", self.clock.at, variants=variants)
        found.view.report(report)
        return found


async def test_a_cheaper_candidate_that_was_passed_over_is_not_called_dearer() -> None:
    yard = CrowdedYard(policy=POLICY + "scarcity: {price_factor: 1000, from_share: 0.5}\n")
    yard.publish(id="c1")
    await route(yard)
    chosen, other, *_ = (e.attributes or {} for e in yard.span("process yard.requests").events)
    assert (chosen["shunter.pool"], chosen["shunter.candidate.reason"]) == (
        "premium-us", "leaves_scarce_places",
    )  # fmt: skip
    assert other["shunter.candidate.cost_usd"] < chosen["shunter.candidate.cost_usd"]  # type: ignore[operator]
    assert other["shunter.candidate"] == "premium-eu yard-8b-fp8 direct: counts_as_dearer"


async def test_a_batch_has_its_own_trace_and_links_lead_both_ways() -> None:
    yard = TracedYard()
    for name in ("s1", "s2"):
        yard.publish(id=name, **SUMMARY)
    await route(yard)
    yard.clock.at += 46.0
    await (await run(yard, make_batcher(yard))).step()

    (whole,) = [s for s in yard.spans() if s.parent is None and s.name == f"send {BATCH}"]
    members = [s for s in yard.spans() if s.parent is not None and s.name == f"send {BATCH}"]
    assert [(span_id_of_link(x), x.attributes["messaging.message.id"]) for x in whole.links] == [
        (span_id_of(member), name) for member, name in zip(members, ("s1", "s2"), strict=True)
    ]
    for member in members:
        (link,) = member.links
        assert span_id_of_link(link) == span_id_of(whole)
        assert trace_id_of(member) != trace_id_of(whole)
    assert said(whole, "messaging.batch.message_count", "shunter.pool") == [2, "boards-us"]
    chosen, *_ = [(event.attributes or {})["shunter.candidate.reason"] for event in whole.events]
    assert chosen == "cheapest_in_time"
    hold, _ = [s for s in yard.spans() if s.name == "hold"]
    assert said(hold, "shunter.hold.release_reason", "shunter.hold.seconds") == ["window", 46.0]
    assert (hold.end_time or 0) - (hold.start_time or 0) == pytest.approx(46e9)
    assert said(hold, "shunter.deadline.slack_s")[0] > 3000
    for record in yard.lane("boards-us", "batch"):
        assert (header(record, "shunter-batch-traceparent") or "")[36:52] == span_id_of(whole)


def span_id_of_link(link: Any) -> str:
    return f"{link.context.span_id:016x}"


async def test_another_batcher_that_restores_the_hold_continues_the_same_trace() -> None:
    yard = TracedYard()
    yard.publish(headers=[("traceparent", TRACEPARENT)], id="s1", **SUMMARY)
    await route(yard)
    # The first one restores it and is gone; the second does it all again.
    await (await run(yard, make_batcher(yard))).step()
    yard.clock.at += 46.0
    await (await run(yard, make_batcher(yard), MemoryLog(yard.cluster, "b"))).step()
    assert tree(yard.trace(CLIENT[3:35])) == [
        ("process yard.requests", [("send yard.held", [("hold", [(f"send {BATCH}", [])])])])
    ]
    (record,) = yard.lane("boards-us", "batch")
    assert (header(record, "traceparent") or "")[3:35] == CLIENT[3:35]


async def test_a_fallback_is_a_second_attempt_in_the_same_trace() -> None:
    yard = TracedYard()
    yard.publish(headers=[("traceparent", TRACEPARENT)], id="c1")
    await route(yard)
    await serve_one(yard, "c1", lambda backend: backend.lose("c1", elsewhere=True))
    await route(yard)

    ((_, below),) = tree(yard.trace(CLIENT[3:35]))
    ((_, (queue, (failed, parts))),) = below
    assert (queue, failed) == (("queue", []), f"process {DIRECT}")
    assert parts == [
        ("chat yard-8b", []),
        (
            "send yard.reroutes",
            [("process yard.reroutes", [("send yard.pool.premium-us.direct", [])])],
        ),
    ]
    for name in (f"process {DIRECT}", "chat yard-8b"):
        span = yard.span(name)
        assert said(span, "error.type") == ["timeout"]
        assert span.status.status_code.name == "ERROR"
    again = yard.span("process yard.reroutes")
    assert said(again, "shunter.attempt", "shunter.fallback.reason") == [2, "timeout"]
    assert said(yard.span("send yard.reroutes"), "shunter.attempt") == [2]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"constraints": {"regions": ["eu-north"]}}, "no_pool"),
        ({"deadline": START - 1}, "deadline_passed"),
        ({"body": {"model": "unheard-of", "messages": []}}, "unknown_model"),
    ],
)
async def test_a_request_without_an_answer_has_a_trace_that_says_why(
    fields: dict[str, Any], code: str
) -> None:
    yard = TracedYard()
    yard.publish(id="c1", **fields)
    await route(yard)
    assert tree(yard.spans()) == [("process yard.requests", [("send yard.results", [])])]
    span = yard.span("process yard.requests")
    assert said(span, "error.type") == [code]
    assert span.status.status_code.name == "ERROR"
    assert yard.results()["c1"].trace_id == trace_id_of(span)


async def test_a_dead_letter_is_traced_and_keeps_the_headers_it_came_with() -> None:
    yard = TracedYard()
    headers = [("traceparent", b"00-not-a-context-01"), ("own", b"x")]
    yard.cluster.publish(Outgoing(yard.catalogue.requests, None, b"{}", headers, 0))
    await route(yard)
    assert tree(yard.spans()) == [("process yard.requests", [("send yard.dead-letters", [])])]
    (letter,) = yard.dead_letters()
    assert header(letter, "traceparent") == "00-not-a-context-01"
    (evidence,) = yard.evidence("dead_lettered")
    assert evidence.trace_id == trace_id_of(yard.span("process yard.requests"))


@pytest.mark.parametrize(("context", "state"), [(TRACEPARENT, "v=1"), (b"00-unfit-01", None)])
async def test_the_state_of_a_trace_is_not_given_to_another(
    context: bytes, state: str | None
) -> None:
    yard = TracedYard()
    yard.publish(headers=[("traceparent", context), ("tracestate", b"v=1")], id="c1")
    await route(yard)
    (record,) = yard.lane("premium-eu", "direct")
    assert header(record, "tracestate") == state


async def test_a_duplicate_and_a_cancelled_request_end_as_errors() -> None:
    yard = TracedYard()
    for _ in range(2):
        yard.publish(id="s1", **SUMMARY)
    await route(yard)
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    batcher._cancel("s1")
    await drain(transactor)
    await transactor.step()
    first, second = [s for s in yard.spans() if s.name == "process yard.requests"]
    assert said(first, "error.type") == [None]
    assert said(second, "error.type") == ["same_id"]
    assert said(yard.span("hold"), "error.type") == ["cancelled"]


async def test_an_aborted_transaction_leaves_no_span() -> None:
    yard = TracedYard()
    yard.publish(id="c1")
    yard.cluster.crash = Crash("commit", 1)
    with pytest.raises(ProcessKilledError):
        await drain(await yard.run(yard.router()))
    assert not yard.spans()
    # Its successor decides again, and that is what the trace shows.
    await route(yard)
    assert tree(yard.spans()) == [("process yard.requests", [(f"send {DIRECT}", [])])]


async def test_a_request_that_a_dead_worker_ran_shows_the_run_that_counts() -> None:
    yard = TracedYard()
    yard.publish(headers=[("traceparent", TRACEPARENT)], id="c1")
    await route(yard)
    ran: list[str] = []

    def end(backend: ScriptedBackend, began_at: float) -> None:
        ran.extend(backend.began)
        backend.finish("c1", started_at=began_at, first_token_at=began_at, finished_at=began_at + 1)

    crash = yard.cluster.crash = Crash("commit", 1)
    with pytest.raises(ProcessKilledError):
        await serve_one(yard, "c1", lambda backend: end(backend, START + 1))
    assert crash.has_struck
    yard.cluster.members.clear()
    yard.clock.at = START + 60
    await serve_one(yard, "c1", lambda backend: end(backend, START + 61))
    assert ran == ["c1", "c1"]

    ((_, ((_, (queue, process)),)),) = tree(yard.trace(CLIENT[3:35]))
    below = [("chat yard-8b", []), ("send yard.results", [])]
    assert (queue, process) == (("queue", []), (f"process {DIRECT}", below))
    assert yard.span("chat yard-8b").start_time == int(START + 61) * 1_000_000_000
    # It waited all the while for the run that counts.
    assert said(yard.span("queue"), "shunter.queue.seconds") == [61.0]


async def test_no_attribute_holds_text_of_a_request() -> None:
    yard = TracedYard()
    yard.publish(id="c1", metadata={"note": "which track?"})
    yard.publish(1, id="no", constraints={"regions": ["eu-north"]})
    await route(yard)
    await serve_one(yard, "c1", lambda backend: backend.finish("c1"))
    told = "".join(span.to_json() for span in yard.spans())
    assert "chat yard-8b" in told
    assert "which track?" not in told


async def test_what_is_not_sampled_and_ends_well_leaves_no_span() -> None:
    yard = TracedYard(Sampling(0.0))
    yard.publish(id="c1")
    yard.publish(1, [("traceparent", UNSAMPLED)], id="c2", **ONLY_EU)
    await route(yard)
    await serve_one(yard, "c1", lambda backend: backend.finish("c1"))
    assert not yard.spans()
    # The context goes on all the same: the result names the trace there would be.
    assert len(yard.results()["c1"].trace_id or "") == 32
    contexts = [header(r, "traceparent") or "" for r in yard.lane("premium-eu", "direct")]
    assert [context[-2:] for context in contexts] == ["00", "00"]
    assert CLIENT[3:35] in {context[3:35] for context in contexts}


async def test_the_client_decides_and_else_the_ratio() -> None:
    yard = TracedYard(Sampling(0.5))
    for n in range(40):
        yard.publish(n % 4, id=f"c{n}")
    yard.publish(headers=[("traceparent", TRACEPARENT)], id="traced")
    yard.publish(headers=[("traceparent", UNSAMPLED)], id="not")
    await route(yard)
    names = [said(s, "messaging.message.id")[0] for s in yard.spans() if s.name.startswith("proc")]
    assert "traced" in names
    assert "not" not in names
    assert 5 <= len(names) <= 36


async def test_a_request_that_expires_in_the_hold_is_traced_late_from_its_beginning() -> None:
    yard = TracedYard(Sampling(0.0), live=[])
    yard.publish(id="s1", deadline=START + 30, **SUMMARY)
    await route(yard)
    transactor = await run(yard, make_batcher(yard))
    await transactor.step()
    assert not yard.spans()
    yard.clock.at += 31.0
    await transactor.step()
    (result,) = yard.results().values()
    assert result.status == "expired"
    spans = yard.trace(result.trace_id or "")
    assert tree(spans) == [("process yard.requests", [("hold", [("send yard.results", [])])])]
    assert all(said(span, "shunter.sampled.late") == [True] for span in spans)
    assert said(yard.span("hold"), "error.type", "shunter.hold.seconds") == [
        "deadline_passed",
        31.0,
    ]


async def test_a_fallback_is_traced_late_and_from_then_on() -> None:
    yard = TracedYard(Sampling(0.0))
    yard.publish(id="c1")
    await route(yard)
    await serve_one(yard, "c1", lambda backend: backend.lose("c1", elsewhere=True))
    await route(yard)
    ((name, parts),) = tree(yard.spans())
    assert name == "process yard.requests"
    assert [part for part, _ in parts] == ["queue", f"process {DIRECT}"]
    assert said(yard.span("process yard.reroutes"), "shunter.sampled.late") == [None]
    (record,) = yard.lane("premium-us", "direct")
    assert (header(record, "traceparent") or "")[-2:] == "01"


async def test_an_answer_after_its_deadline_is_traced_late() -> None:
    yard = TracedYard(Sampling(0.0))
    yard.publish(id="c1", deadline=START + 100)
    await route(yard)
    late = START + 101.0
    await serve_one(yard, "c1", lambda backend: backend.finish("c1", finished_at=late))
    assert yard.results()["c1"].status == "completed"
    assert said(yard.span("chat yard-8b"), "shunter.deadline.slack_s") == [pytest.approx(-1.0)]


async def test_an_overload_is_traced_late_only_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.tracing.telemetry.LATE_PER_S_MAX", 3)
    yard = TracedYard(Sampling(0.0))
    for n in range(10):
        yard.publish(id=f"c{n}", deadline=START - 1)
    await route(yard)
    assert len([s for s in yard.spans() if s.name.startswith("process")]) == 3
    metrics = make_metrics(yard)
    metrics.gauges.read_from(span_gauges(yard.telemetry))
    assert read(metrics, m.LEFT_OUT_TRACES) == {(): 7}
    yard.clock.at += 1.0
    yard.publish(id="later", deadline=START - 1)
    await route(yard)
    assert len([s for s in yard.spans() if s.name.startswith("process")]) == 4


async def test_without_telemetry_contexts_pass_and_nothing_is_added() -> None:
    yard = Yard()
    yard.publish(headers=[("traceparent", TRACEPARENT)], id="c1")
    yard.publish(1, id="c2")
    await route_plain(yard)
    found = {r.key: header(r, "traceparent") for r in yard.lane("premium-eu", "direct")}
    assert found == {b"c1": CLIENT, b"c2": None}
