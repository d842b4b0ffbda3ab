"""The router on the log in memory: every request on its way, with its evidence."""

from dataclasses import replace
from typing import Any
from zlib import crc32

import orjson
import pytest
from memory_log import Crash, MemoryLog, ProcessKilledError
from stream_cases import (
    MODEL,
    POLICY,
    START,
    TRACEPARENT,
    Yard,
    drain,
    header,
    keys,
    make_router,
    request,
    route,
)

from shunter.audit.replay import replay_steps
from streams.engine.log import Outgoing, Partition, Record
from topics import BadRecordError, Envelope, Fallback, Placement, Profile, Progress, decode, encode
from topics.records import headers as h
from topics.records.decision_rows import rounded

AHEAD_MS = int(START * 1000) + 3_600_000


def profile_of(record: Record) -> Profile:
    return h.read(record.headers, h.PROFILE, Profile)


def assert_one_transaction(yard: Yard, *records: Record) -> None:
    transactions = {id(yard.cluster.transaction_of(record)) for record in records}
    assert len(transactions) == 1
    assert yard.cluster.transaction_of(records[0]) is not None


@pytest.mark.parametrize("timestamp_ms", [-1, -86_400_000, AHEAD_MS + 1, 2**63 - 1])
async def test_a_record_without_a_time_or_with_one_far_ahead_is_of_now(timestamp_ms: int) -> None:
    yard = Yard()
    for fields in ({"id": "c1"}, {"id": "c2", "task": "none"}):
        value = orjson.dumps(request(created_at=None, **fields))
        yard.cluster.publish(Outgoing(yard.catalogue.requests, None, value, [], 0), timestamp_ms)
    await route(yard)
    (record,) = yard.lane("premium-eu", "direct")
    profile = profile_of(record)
    assert (profile.created_at, profile.deadline) == (START, START + 120)
    assert yard.results()["c2"].timing.created_at == START


@pytest.mark.parametrize("timestamp_ms", [1, int(START * 1000) - 60_000, AHEAD_MS])
async def test_another_record_is_of_when_its_producer_says(timestamp_ms: int) -> None:
    """The clocks of clients are not those of routers."""
    yard = Yard()
    record = Outgoing(
        yard.catalogue.requests, None, orjson.dumps(request(id="c1", created_at=None)), [], 0
    )
    yard.cluster.publish(record, timestamp_ms)
    await route(yard)
    (evidence,) = yard.evidence()
    assert evidence.profile is not None
    assert evidence.profile.created_at == timestamp_ms / 1000


@pytest.mark.parametrize("partition", [0, 3])
async def test_a_chat_turn_goes_to_the_partition_of_the_same_number(partition: int) -> None:
    yard = Yard()
    sent = yard.publish(partition, [("own", b"\xff"), ("traceparent", TRACEPARENT)], id="c1")
    await route(yard)
    (record,) = yard.lane("premium-eu", "direct")
    assert (record.partition.number, record.key) == (partition, b"c1")
    assert record.value is sent.value, "the payload was copied"
    assert h.find(record.headers, "own") == b"\xff"
    assert h.find(record.headers, "traceparent") == TRACEPARENT
    assert h.read(record.headers, h.PLACEMENT, Placement) == Placement(
        "premium-eu", "fast", "yard-8b-fp8", "fp8", "eu-west", "direct"
    )
    assert profile_of(record).ingest_partition == partition
    promised = h.read(record.headers, h.PROMISED, Envelope)
    assert 0 < promised.cost_usd < 0.01

    (evidence,) = yard.evidence()
    assert (evidence.request_id, evidence.step, evidence.at) == ("c1", "placed", START)
    assert (evidence.source.topic, evidence.source.partition, evidence.source.offset) == (
        yard.catalogue.requests,
        partition,
        0,
    )
    assert evidence.placement == h.read(record.headers, h.PLACEMENT, Placement)
    assert evidence.promised == rounded(promised)
    assert (evidence.policy_version, evidence.fleet_version) == (
        yard.policy.version,
        yard.options.version,
    )
    assert evidence.view_version == 3
    assert [(c.pool, c.refused) for c in evidence.candidates] == [
        ("premium-eu", None),
        ("premium-us", None),
        ("boards-us", "lane"),
    ]
    assert evidence.tags is not None
    assert {"task", "context_length", "memory_footprint", "fallback_risk"} <= set(evidence.tags)
    assert evidence.trace_id == TRACEPARENT.decode()[3:35]
    assert_one_transaction(
        yard, record, yard.cluster.records(yard.catalogue.evidence)[0], _progress(yard, partition)
    )


def _progress(yard: Yard, partition: int) -> Record:
    (record,) = yard.cluster.records(yard.catalogue.progress, partition)
    return record


async def test_what_only_shunter_may_write_is_dropped_from_a_clients_headers() -> None:
    yard = Yard()
    forged = encode(Placement("boards-us", "slow", "yard-8b-int8", "int8", "us-east", "direct"))
    yard.publish(0, [("shunter-placement", forged), ("shunter-batch-id", b"b"), ("a", b"1")])
    await route(yard)
    (record,) = yard.lane("premium-eu", "direct")
    assert h.read(record.headers, h.PLACEMENT, Placement).pool == "premium-eu"
    names = [name for name, _ in record.headers]
    assert sorted(names) == ["a", "shunter-placement", "shunter-profile", "shunter-promised"]


async def test_work_that_may_wait_is_held_on_the_partition_of_its_group() -> None:
    yard = Yard()
    sent = [yard.publish(n, id=f"s{n}", task="summarization") for n in range(4)]
    regulated = {"data_class": "regulated"}
    yard.publish(2, id="eu", task="summarization", constraints=regulated)
    await route(yard)
    held = {(r.key or b"").decode(): r for r in yard.held()}
    assert sorted(held) == ["eu", "s0", "s1", "s2", "s3"]
    groups = {name: header(record, h.GROUP) or "" for name, record in held.items()}
    assert len({groups[f"s{n}"] for n in range(4)}) == 1
    assert groups["eu"] != groups["s0"]
    for name, record in held.items():
        assert record.partition.number == crc32(groups[name].encode()) % 4
        assert header(record, h.HELD_AT) == repr(START)
        assert h.find(record.headers, h.PLACEMENT) is None
    assert held["s1"].value is sent[1].value
    assert {e.request_id: e.step for e in yard.evidence()} == dict.fromkeys(held, "held")
    evidence = yard.cluster.records(yard.catalogue.evidence)
    of_s1 = next(record for record in evidence if record.key == b"s1")
    assert_one_transaction(yard, held["s1"], of_s1)


async def test_a_request_waits_for_a_pool_that_has_no_worker_yet() -> None:
    yard = Yard(live=["premium-us"])
    yard.publish(0, id="c1", constraints={"regions": ["eu-west"]})
    await route(yard)
    (record,) = yard.held()
    assert not profile_of(record).batchable
    (evidence,) = yard.evidence("held")
    assert evidence.reason == "pool_unavailable"
    assert not yard.results()


REJECTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "operation": (
        {"url": "/v1/responses"},
        "operation_not_served",
        "/v1/responses is not served: send the conversation to POST /v1/chat/completions",
    ),
    "task": ({"task": "knitting"}, "unknown_task", "knitting"),
    "data class": ({"constraints": {"data_class": "x"}}, "unknown_data_class", "'x'"),
    "model": ({"model": "none-such"}, "unknown_model", "none-such"),
    "region": ({"constraints": {"regions": ["moon"]}}, "no_pool", "region"),
}


@pytest.mark.parametrize("kind", REJECTED)
async def test_what_no_pool_could_serve_is_rejected_with_its_reason(kind: str) -> None:
    fields, code, told = REJECTED[kind]
    yard = Yard()
    yard.publish(1, [("traceparent", TRACEPARENT)], id="c1", metadata={"a": [1]}, **fields)
    await route(yard)
    result = yard.results()["c1"]
    assert result.status == "rejected"
    assert result.error is not None
    assert result.error.code == code
    assert told in result.error.message
    assert result.metadata == {"a": [1]}
    assert result.model == fields.get("model", MODEL)
    assert result.trace_id == TRACEPARENT.decode()[3:35]
    assert result.timing.finished_at == START
    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.reason) == ("rejected", code)
    (record,) = yard.cluster.records(yard.catalogue.results)
    (evidence_record,) = yard.cluster.records(yard.catalogue.evidence)
    assert_one_transaction(yard, record, evidence_record)
    assert not yard.dead_letters()


async def test_a_rejection_names_each_pool_and_why() -> None:
    yard = Yard()
    yard.publish(0, id="c1", constraints={"regions": ["us-east"], "exclude_pools": ["premium-us"]})
    await route(yard)
    error = yard.results()["c1"].error
    assert error is not None
    assert error.details == {
        "premium-eu": "region",
        "premium-us": "pool_excluded",
        "boards-us": "lane",
    }


async def test_what_comes_too_late_has_expired() -> None:
    yard = Yard()
    yard.publish(0, id="late", deadline=START - 5)
    await route(yard)
    result = yard.results()["late"]
    assert result.status == "expired"
    assert result.error is not None
    assert result.error.code == "deadline_passed"
    assert "it had passed when the request came to yard.requests" in result.error.message
    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.message) == ("expired", result.error.message)


async def test_what_waited_for_a_router_until_its_deadline_says_so() -> None:
    yard = Yard()
    yard.publish(0, id="late", deadline=START + 5)
    yard.clock.at = START + 7
    await route(yard)
    error = yard.results()["late"].error
    assert error is not None
    assert error.message == (
        "the deadline passed 2.0 s before the request was routed;"
        " it waited 7.0 s for a router on yard.requests"
    )


BAD: dict[str, tuple[bytes | None, str]] = {
    "not JSON": (b"{nonsense", "not_json"),
    "an array": (b"[]", "not_an_object"),
    "nested": (b'{"a":' * 300 + b"1" + b"}" * 300, "too_deep"),
    "nested beyond reading": (b'{"a":' * 3000 + b"1" + b"}" * 3000, "not_json"),
    "a tombstone": (None, "empty_value"),
    "too large": (orjson.dumps(request(metadata="x" * 1_100_000)), "too_large"),
    "an id twice": (b'{"id": "a", "id": "b", "body": {"model": "yard-8b"}}', "duplicate_field"),
    "a misspelt constraint": (
        orjson.dumps(request(constraints={"region": ["eu-west"]})),
        "invalid_request",
    ),
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_input_is_dead_lettered_between_neighbours_that_are_served(kind: str) -> None:
    value, reason = BAD[kind]
    yard = Yard()
    yard.publish(2, id="before")
    bad = Outgoing(yard.catalogue.requests, b"\xff\xfe", value, [("own", b"\xff")], 2)
    yard.cluster.publish(bad)
    yard.publish(2, id="after")
    await route(yard)
    assert keys(yard.lane("premium-eu", "direct", 2)) == ["before", "after"]
    (letter,) = yard.dead_letters()
    assert (letter.key, letter.value) == (b"\xff\xfe", value)
    assert h.find(letter.headers, "own") == b"\xff"
    assert header(letter, h.REASON) == reason
    assert header(letter, "__connect.errors.topic") == yard.catalogue.requests
    assert header(letter, "__connect.errors.partition") == "2"
    assert header(letter, "__connect.errors.offset") == "1"
    assert header(letter, "__connect.errors.stage") in ("decode", "validate")
    assert header(letter, "__connect.errors.exception.class.name") == "BadRecordError"
    assert header(letter, "__connect.errors.exception.message")
    (evidence,) = yard.evidence("dead_lettered")
    assert (evidence.reason, evidence.source.offset) == (reason, 1)
    assert not yard.results()


async def test_a_bad_record_without_a_key_is_named_by_where_it_stood() -> None:
    yard = Yard()
    yard.cluster.publish(Outgoing(yard.catalogue.requests, None, None, [], 1))
    await route(yard)
    (letter,) = yard.dead_letters()
    assert (letter.key, letter.value) == (b"", None)
    (evidence,) = yard.evidence()
    assert evidence.request_id == f"{yard.catalogue.requests}/1/0"


async def test_a_bad_record_with_a_huge_key_does_not_make_its_evidence_huge() -> None:
    """Each of its bytes would be written as many; and what a topic refuses ends the process."""
    yard = Yard()
    yard.cluster.publish(Outgoing(yard.catalogue.requests, b"\xff" * 1_000_000, b"{", [], 1))
    await route(yard)
    (letter,) = yard.dead_letters()
    assert len(letter.key or b"") == 1_000_000
    (evidence,) = yard.evidence()
    assert evidence.request_id == f"{yard.catalogue.requests}/1/0"


async def test_a_bad_record_that_does_not_fit_with_its_reason_is_told_of_without_its_text() -> None:
    yard = Yard()
    headers = [("own", b"x" * 500_000)]
    yard.cluster.oversized = lambda record: any(len(v) >= 500_000 for _, v in record.headers)
    yard.cluster.publish(Outgoing(yard.catalogue.requests, b"key", b"{", headers, 1))
    yard.publish(1, id="after")
    await route(yard)
    (letter,) = yard.dead_letters()
    assert (letter.key, letter.value) == (b"", None)
    assert header(letter, h.LEFT_OUT) == "key, value and headers"
    assert header(letter, h.REASON) == "not_json"
    assert header(letter, "__connect.errors.offset") == "0"
    (evidence,) = yard.evidence("dead_lettered")
    assert (evidence.reason, evidence.source.offset) == ("not_json", 0)
    assert keys(yard.lane("premium-eu", "direct", 1)) == ["after"]


async def test_a_record_with_an_unreadable_header_is_dead_lettered_whatever_its_value() -> None:
    yard = Yard()
    value = orjson.dumps(request(id="c1"))
    error = BadRecordError("decode", "header_not_utf8", "the name of a header is not UTF-8")
    yard.cluster.publish(Outgoing(yard.catalogue.requests, b"c1", value, [], 0), unreadable=error)
    yard.publish(0, id="c2")
    await route(yard)
    (letter,) = yard.dead_letters()
    assert header(letter, h.REASON) == "header_not_utf8"
    assert keys(yard.lane("premium-eu", "direct")) == ["c2"]


def reroute(
    yard: Yard, profile: Profile, *tried: str, partition: int = 0, reason: str = "timeout"
) -> Record:
    """Send a request back as a worker does: one attempt later, without the pools that failed."""
    again = replace(
        profile,
        attempt=profile.attempt + len(tried),
        exclude_pools=tried,
        fallbacks=tuple(Fallback(pool, reason) for pool in tried),
    )
    value = orjson.dumps(request(id=profile.id, metadata=7))
    headers = [("own", b"1"), (h.PROFILE, encode(again))]
    return yard.cluster.publish(
        Outgoing(yard.catalogue.reroutes, profile.id.encode(), value, headers, partition)
    )


async def routed_profile(yard: Yard, **fields: Any) -> Profile:
    yard.publish(3, **fields)
    await route(yard)
    yard.cluster.members.clear()
    (record,) = yard.lane("premium-eu", "direct")
    return profile_of(record)


async def test_a_failed_try_goes_elsewhere_and_tells_its_story() -> None:
    yard = Yard()
    profile = await routed_profile(yard, id="c1")
    sent = reroute(yard, profile, "premium-eu", partition=1)
    await route(yard)
    (record,) = yard.lane("premium-us", "direct")
    # Its direct lane is that of the ingest partition it came on, not of the reroute.
    assert record.partition.number == 3
    assert record.value is sent.value
    assert h.find(record.headers, "own") == b"1"
    placement = h.read(record.headers, h.PLACEMENT, Placement)
    assert (placement.attempt, placement.fallbacks) == (2, (Fallback("premium-eu", "timeout"),))
    assert profile_of(record).exclude_pools == ("premium-eu",)
    second = yard.evidence("placed")[-1]
    assert second.attempt == 2
    assert {c.pool: c.refused for c in second.candidates}["premium-eu"] == "pool_excluded"
    assert not yard.results()


async def test_where_no_pool_is_left_to_try_the_request_has_failed() -> None:
    yard = Yard()
    profile = await routed_profile(yard, id="c1")
    reroute(yard, profile, "premium-eu", "premium-us", reason="context_too_long")
    await route(yard)
    result = yard.results()["c1"]
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.details == {
        "premium-eu": "context_too_long",
        "premium-us": "context_too_long",
        "boards-us": "lane",
    }
    assert result.metadata == 7
    assert [e.step for e in yard.evidence()][-1] == "failed"


async def test_where_no_other_pool_could_serve_it_one_that_may_be_well_again_is_tried() -> None:
    yard = Yard()
    profile = await routed_profile(yard, id="c1", constraints={"pools": ["premium-eu"]})
    reroute(yard, profile, "premium-eu", reason="connection_lost")
    await route(yard)
    first, second = yard.lane("premium-eu", "direct")
    assert profile_of(second).exclude_pools == ()
    assert profile_of(second).fallbacks == (Fallback("premium-eu", "connection_lost"),)
    assert (profile_of(first).attempt, profile_of(second).attempt) == (1, 2)


async def test_a_reroute_that_is_too_late_has_expired() -> None:
    yard = Yard()
    profile = await routed_profile(yard, id="c1")
    yard.clock.at = profile.deadline
    reroute(yard, profile, "premium-eu")
    await route(yard)
    result = yard.results()["c1"]
    assert result.error is not None
    assert (result.status, result.error.details) == ("expired", {"premium-eu": "timeout"})
    assert result.error.message.endswith("routed again, after premium-eu had failed (timeout)")


async def test_a_reroute_without_its_profile_is_dead_lettered() -> None:
    yard = Yard()
    profile = await routed_profile(yard, id="c1")
    yard.cluster.publish(Outgoing(yard.catalogue.reroutes, b"x", b"{}", [], 0))
    reroute(yard, profile, "premium-eu")
    await route(yard)
    (letter,) = yard.dead_letters()
    assert header(letter, h.REASON) == "missing_header"
    assert keys(yard.lane("premium-us", "direct")) == ["c1"]


async def test_an_estimated_reply_refuses_nobody_and_replays() -> None:
    """A prompt that leaves less of the context than the class's usual reply takes."""
    yard = Yard()
    full = {"input_tokens": 32_700}
    yard.publish(id="c1", hints=full)
    yard.publish(id="c2", hints=full | {"output_tokens": 200})
    yard.publish(id="b1", task="summarization", hints=full)
    await route(yard)
    assert {e.request_id: e.step for e in yard.evidence()} == {
        "c1": "placed",
        "c2": "rejected",
        "b1": "held",
    }
    error = yard.results()["c2"].error
    assert error is not None
    assert "context_too_long" in (error.details or {}).values()
    found = replay_steps(yard.evidence(), lambda *_: (yard.options, yard.policy))
    assert len(found) == 3
    assert not [each for each in found if each.differences]


async def test_a_placement_that_the_log_refuses_has_failed_and_its_neighbours_are_placed() -> None:
    yard = Yard()
    lane = yard.catalogue.pool_lane("premium-eu", "direct")
    yard.cluster.refuse = lambda record: record.topic == lane and record.key == b"c1"
    for n in range(3):
        yard.publish(0, id=f"c{n}", metadata=n)
    await route(yard)
    assert keys(yard.lane("premium-eu", "direct")) == ["c0", "c2"]
    (letter,) = yard.dead_letters()
    assert letter.key == b"c1"
    assert header(letter, h.REASON) == "refused"
    assert header(letter, "__connect.errors.stage") == "produce"
    (result,) = yard.results().values()
    assert (result.id, result.status, result.metadata) == ("c1", "failed", 1)
    assert result.error is not None
    assert lane in result.error.message
    assert sorted((e.request_id, e.step) for e in yard.evidence()) == [
        ("c0", "placed"),
        ("c1", "dead_lettered"),
        ("c1", "failed"),
        ("c2", "placed"),
    ]


@pytest.mark.parametrize("point", ["append", "commit", "committed"])
async def test_a_router_that_dies_leaves_no_half_and_its_successor_no_double(point: Any) -> None:
    yard = Yard()
    names = [f"c{n}" for n in range(6)]
    for n, name in enumerate(names):
        yard.publish(n % 2, id=name)
    yard.cluster.crash = Crash(point, 2)
    with pytest.raises(ProcessKilledError):
        await drain(await yard.run(make_router(yard), MemoryLog(yard.cluster, "first")))
    placed = keys(yard.lane("premium-eu", "direct"))
    assert sorted(placed) == sorted(e.request_id for e in yard.evidence())
    yard.cluster.members.clear()
    await route(yard)
    assert sorted(keys(yard.lane("premium-eu", "direct"))) == names
    assert sorted(e.request_id for e in yard.evidence("placed")) == names


async def test_progress_and_offset_stand_behind_what_was_routed() -> None:
    yard = Yard()
    for n in range(5):
        yard.publish(1, id=f"c{n}")
    router = make_router(yard)
    transactor = await yard.run(router)
    await drain(transactor)
    # Until the next heartbeat the view counts what was sent.
    load = router._situation.view.load("premium-eu")
    assert load.running_by_variant == {"yard-8b-fp8": 5}
    assert load.backlog_s > 0
    assert decode(Progress, _progress(yard, 1).value or b"").with_head(None).on_log(
        None, None
    ) == Progress(5)
    await transactor.stop()
    assert {p.number: o for (_, p), o in yard.cluster.offsets.items()} == {1: 5}


async def test_a_line_of_a_batch_file_is_a_request_that_can_wait() -> None:
    yard = Yard()
    line = {"custom_id": "b1", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = request()["body"]
    record = Outgoing(yard.catalogue.requests, None, orjson.dumps(line), [], 0)
    yard.cluster.publish(record)
    yard.clock.at = yard.cluster.records(yard.catalogue.requests)[0].timestamp_ms / 1000
    await route(yard)
    assert keys(yard.lane("premium-eu", "direct")) + keys(yard.held()) == ["b1"]
    assert not yard.results()


async def test_a_cloud_event_lends_its_id() -> None:
    yard = Yard()
    value = orjson.dumps({"body": {"model": MODEL, "prompt": "x"}})
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"event-1")]
    yard.cluster.publish(Outgoing(yard.catalogue.requests, None, value, headers, 0))
    await route(yard)
    assert keys(yard.lane("premium-eu", "direct")) == ["event-1"]


RATED = (
    POLICY
    + """
tenants:
  acme: {rate_per_s: 0.5}
"""
)


async def test_what_exceeds_a_tenants_rate_is_rejected_and_the_others_are_not() -> None:
    yard = Yard(policy=RATED)
    for n in range(20):
        yard.publish(n % 4, id=f"a{n}", tenant="acme")
        yard.publish(n % 4, id=f"b{n}", tenant="other")
    await route(yard)
    results = yard.results()
    assert len(results) == 15, "five in ten seconds were admitted"
    assert all(name.startswith("a") for name in results)
    assert {(r.status, r.error.code if r.error else None) for r in results.values()} == {
        ("rejected", "rate_limited")
    }
    assert len(yard.evidence("placed")) == 25
    (rejected, *_) = yard.evidence("rejected")
    assert rejected.message is not None
    assert "'acme' exceeds its rate; try again in" in rejected.message


async def test_one_of_several_routers_counts_the_company_that_comes_to_the_others() -> None:
    yard = Yard()
    router, log = make_router(yard), MemoryLog(yard.cluster)
    ingest = [Partition(yard.catalogue.requests, number) for number in range(4)]

    def counted(group: str) -> float:
        arrivals = router._situation.arrivals
        before = arrivals.rate_per_s(group, START)
        arrivals.observe(group, START)
        return arrivals.rate_per_s(group, START) - before

    for partition in ingest:
        await router.restore(partition, None, log)
    whole = counted("of all")
    router.forget(ingest[0])
    router.forget(ingest[1])
    assert counted("of half") == pytest.approx(2 * whole)
    router.forget(ingest[2])
    assert counted("of a quarter") == pytest.approx(4 * whole)
