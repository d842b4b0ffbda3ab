"""Bad ends of requests at a worker."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest
from stream_cases import MODEL, START, Yard, header, make_profile, step_until
from worker_cases import PROMISED, ScriptedBackend, place, placed, progress, serve

from shunter.audit.findings import Findings
from shunter.audit.results import Results
from streams.engine.log import LogError, Outgoing
from streams.engine.transactor import Transactor
from streams.evidence.projection import decode_step
from topics import (
    BACKGROUND_TASK,
    Fallback,
    Placement,
    Profile,
    Progress,
    QualityCheck,
    Response,
    Salt,
    encode,
)
from topics.records import headers as h
from topics.signing.salts import digest_key
from workers.backends.base import CallError
from workers.stage.partition_state import Lane


async def started(yard: Yard, backend: ScriptedBackend, count: int = 1) -> Transactor:
    """Return a worker's transactor that has this many calls under way."""
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == count, "the calls")
    return transactor


async def test_what_comes_to_its_turn_too_late_has_expired() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(4):
        place(yard, f"c{n}")
    place(yard, "late", deadline=START + 9, metadata="m")
    transactor = await started(yard, backend, 4)
    yard.clock.at = START + 9
    backend.finish("c0")
    await step_until(transactor, lambda: "late" in yard.results(), "the end of the late one")
    result = yard.results()["late"]
    assert (result.status, result.metadata) == ("expired", "m")
    assert result.model == MODEL
    assert result.error is not None
    assert result.error.code == "deadline_passed"
    assert result.error.message.endswith(
        "before its turn came at premium-eu, 9.0 s after its placement"
    )
    assert result.timing.finished_at == START + 9
    assert "late" not in backend.began
    assert [e.step for e in yard.evidence() if e.request_id == "late"] == ["expired"]


async def test_what_runs_at_its_deadline_is_stopped_and_has_expired() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    profile = replace(make_profile(yard.policy, id="c0", deadline=START + 0.1), attempt=3)
    place(yard, "c0", profile=profile)
    transactor = await started(yard, backend)
    yard.clock.at = START + 0.1
    await step_until(transactor, yard.results, "the end")
    result = yard.results()["c0"]
    assert (result.status, result.placement is not None) == ("expired", True)
    assert result.error is not None
    assert "while it ran at premium-eu: no answer within" in result.error.message
    assert result.error.details == {"premium-eu": "timeout"}
    assert backend.cancelled == ["c0"]


async def test_a_pool_that_never_answers_leaves_time_for_another() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "c0", deadline=START + 0.2)
    transactor = await started(yard, backend)
    yard.clock.at = START + 0.1
    await step_until(transactor, yard.evidence, "the fallback")
    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.reason) == ("fell_back", "timeout")
    assert backend.cancelled == ["c0"]
    assert len(yard.cluster.records(yard.catalogue.reroutes)) == 1


async def test_a_failure_that_another_pool_may_not_have_is_tried_elsewhere() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    sent = place(
        yard,
        "c0",
        number=1,
        ingest_partition=3,
        constraints={"exclude_pools": ["boards-us"]},
    )
    transactor = await started(yard, backend)
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.evidence, "the fallback")
    (record,) = yard.cluster.records(yard.catalogue.reroutes)
    assert record.partition.number == 3
    assert record.value is sent.value
    assert [name for name, _ in record.headers] == ["own", h.PROFILE]
    profile = h.read(record.headers, h.PROFILE, Profile)
    assert profile.attempt == 2
    assert profile.exclude_pools == ("boards-us", "premium-eu")
    assert profile.fallbacks == (Fallback("premium-eu", "timeout"),)
    (evidence,) = yard.evidence()
    assert (evidence.step, evidence.reason) == ("fell_back", "timeout")
    assert evidence.fallback == Fallback("premium-eu", "timeout")
    assert evidence.promised == PROMISED
    assert not yard.results()
    assert progress(yard, 1) == Progress(1)
    (evidence_record,) = yard.cluster.records(yard.catalogue.evidence)
    transaction = yard.cluster.transaction_of(record)
    assert yard.cluster.transaction_of(evidence_record) is transaction


async def test_the_last_attempt_fails_with_the_story_of_all() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    tried = (Fallback("premium-us", "overloaded"), Fallback("boards-us", "memory"))
    profile = replace(make_profile(yard.policy, id="c0"), attempt=3, fallbacks=tried)
    place(yard, "c0", profile=profile)
    transactor = await started(yard, backend)
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.results, "the failure")
    result = yard.results()["c0"]
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("timeout", "no answer in 30 s")
    assert result.error.details == {
        "premium-us": "overloaded",
        "boards-us": "memory",
        "premium-eu": "timeout",
    }
    assert result.placement is not None
    assert (result.placement.attempt, result.placement.fallbacks) == (3, tried)
    assert [e.step for e in yard.evidence()] == ["failed"]
    assert not yard.cluster.records(yard.catalogue.reroutes)


async def test_the_last_but_one_attempt_is_not_the_last() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    profile = replace(make_profile(yard.policy, id="c0"), attempt=yard.policy.attempts_max - 1)
    place(yard, "c0", profile=profile)
    transactor = await started(yard, backend)
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.evidence, "the fallback")
    assert len(yard.cluster.records(yard.catalogue.reroutes)) == 1
    assert not yard.results()


async def test_a_request_that_is_itself_at_fault_is_not_tried_again() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "c0")
    transactor = await started(yard, backend)
    backend.lose("c0", elsewhere=False)
    await step_until(transactor, yard.results, "the failure")
    assert yard.results()["c0"].status == "failed"
    assert not yard.cluster.records(yard.catalogue.reroutes)


@pytest.mark.parametrize("is_background", [False, True])
async def test_the_server_s_answer_to_a_refused_request_is_signed(is_background: bool) -> None:
    yard = Yard()
    backend = ScriptedBackend()
    profile = make_profile(yard.policy, id="c0")
    check = QualityCheck("chat", "yard-8b-fp8", "tokens", 0.2, 600.0, 3600.0, of="r1")
    second = replace(profile, quality=check, task=BACKGROUND_TASK)
    place(yard, "c0", profile=second if is_background else profile)
    transactor = await started(yard, backend)
    body = {"error": {"message": "not so"}}
    refused = CallError("request_refused", "no", retry="never", response=Response(400, body))
    backend.fail("c0", refused)
    await step_until(transactor, yard.results, "the failure")
    (end,) = yard.evidence("failed")
    result = yard.results()["c0"]
    assert end.response_digest is not None
    assert result.response == (None if is_background else Response(400, body))
    # The salts of a yard count from 1: the id first, then the salt.
    salt = Salt(
        profile.tenant, end.response_digest.salt, base64.b64encode(bytes(31) + b"\2").decode()
    )
    findings, results = Findings(), Results(lambda _salt: digest_key(salt, b"secret"), {})
    for record in yard.cluster.records(yard.catalogue.evidence):
        results.ended(decode_step(record.value or b""))
    for record in yard.cluster.records(yard.catalogue.results):
        results.add(record, "here", findings)
    results.finish(findings)
    assert findings.is_good, findings.problems


async def test_a_variant_that_is_not_served_any_more_is_tried_elsewhere() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "c0", extra=((h.PLACEMENT, encode(STRANGER)),))
    transactor = await started(yard, backend, 0)
    await step_until(transactor, yard.evidence, "the fallback")
    (record,) = yard.cluster.records(yard.catalogue.reroutes)
    profile = h.read(record.headers, h.PROFILE, Profile)
    assert profile.fallbacks == (Fallback("premium-eu", "variant_not_served"),)
    assert not yard.results()


STRANGER = Placement("premium-eu", "fast", "another-variant", "fp8", "eu-west", "direct")
BAD: dict[str, tuple[dict[str, Any], str, bool]] = {
    "no profile": ({h.PROFILE: None}, "missing_header", False),
    "a broken profile": ({h.PROFILE: b"{}"}, "bad_header", False),
    "no placement": ({h.PLACEMENT: None}, "missing_header", True),
    "a broken placement": ({h.PLACEMENT: b"nonsense"}, "bad_header", True),
    "a broken batch": ({h.BATCH_ID: b"b", h.BATCH_INDEX: b"one"}, "bad_header", True),
    "a broken time": ({h.RELEASED_AT: b"noon"}, "bad_header", True),
}


@pytest.mark.parametrize("lane", ["direct", "batch"])
@pytest.mark.parametrize("kind", BAD)
async def test_a_record_without_sense_is_dead_lettered_and_its_neighbours_are_served(
    kind: str, lane: Any
) -> None:
    changes, reason, is_known = BAD[kind]
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "before", lane=lane)
    bad = placed(yard, "bad", lane=lane, metadata="m")
    kept = [header for header in bad.headers if header[0] not in changes]
    bad.headers = kept + [(n, v) for n, v in changes.items() if v is not None]
    yard.cluster.publish(bad)
    place(yard, "after", lane=lane)
    transactor = await started(yard, backend, 2)
    assert backend.began == ["before", "after"]
    for name in ("before", "after"):
        backend.finish(name)
    await step_until(transactor, lambda: progress(yard, lane=lane) == Progress(3), "all three")
    (letter,) = yard.dead_letters()
    assert (letter.key, letter.value) == (b"bad", bad.value)
    assert header(letter, h.REASON) == reason
    assert [e.reason for e in yard.evidence("dead_lettered")] == [reason]
    results = yard.results()
    assert {name: results[name].status for name in ("before", "after")} == {
        "before": "completed",
        "after": "completed",
    }
    # A request that the router accepted has its one result, whatever became of the record.
    assert ("bad" in results) is is_known
    if is_known:
        assert results["bad"].status == "failed"
        assert results["bad"].metadata == "m"
        assert results["bad"].error is not None
        assert results["bad"].error.code == reason


@pytest.mark.parametrize("is_elsewhere", [True, False])
async def test_a_member_of_a_batch_that_fails_fails_alone(is_elsewhere: bool) -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(3):
        place(yard, f"s{n}", lane="batch", task="summarization")
    transactor = await started(yard, backend, 3)
    backend.lose("s1", elsewhere=is_elsewhere)
    await step_until(transactor, lambda: len(yard.evidence()) == 1, "the failure")
    for name in ("s0", "s2"):
        backend.finish(name)
    await step_until(transactor, lambda: len(yard.evidence()) == 3, "the others")
    steps = {e.request_id: e.step for e in yard.evidence()}
    assert steps == {
        "s0": "executed",
        "s1": "fell_back" if is_elsewhere else "failed",
        "s2": "executed",
    }
    ended = {name: result.status for name, result in yard.results().items()}
    failed = {} if is_elsewhere else {"s1": "failed"}
    assert ended == {"s0": "completed", "s2": "completed"} | failed
    again = [record.key for record in yard.cluster.records(yard.catalogue.reroutes)]
    assert again == ([b"s1"] if is_elsewhere else [])
    assert progress(yard, lane="batch") == Progress(3)


async def test_a_dead_letter_that_the_log_refuses_ends_the_process() -> None:
    yard = Yard()
    record = placed(yard, "bad")
    record.value = b"{nonsense"
    yard.cluster.publish(record)
    yard.cluster.refuse = lambda record: record.topic == yard.catalogue.dead_letters
    _, transactor = await serve(yard, ScriptedBackend())
    with pytest.raises(LogError, match="dead letter"):
        await transactor.step()
    assert not yard.results()
    assert progress(yard) is None


async def test_a_payload_that_is_no_request_is_dead_lettered() -> None:
    yard = Yard()
    record = placed(yard, "bad")
    record.value = b"{nonsense"
    yard.cluster.publish(record)
    _, transactor = await serve(yard, ScriptedBackend())
    await step_until(transactor, yard.results, "the failure")
    (letter,) = yard.dead_letters()
    assert header(letter, h.REASON) == "not_json"
    assert yard.results()["bad"].status == "failed"


async def test_a_result_that_the_log_refuses_is_replaced_by_a_failure() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    for n in range(3):
        place(yard, f"c{n}", metadata=n)
    results = yard.catalogue.results

    def is_too_large(record: Outgoing) -> bool:
        return record.topic == results and b"essay" in (record.value or b"")

    yard.cluster.refuse = is_too_large
    transactor = await started(yard, backend, 3)
    backend.finish("c0")
    backend.finish("c1", response=Response(200, "essay"))
    backend.finish("c2")
    await asyncio.sleep(0)
    await step_until(transactor, lambda: len(yard.results()) == 3, "three results")
    found = yard.results()
    assert {name: result.status for name, result in found.items()} == {
        "c0": "completed",
        "c1": "failed",
        "c2": "completed",
    }
    assert found["c1"].error is not None
    assert found["c1"].error.code == "result_refused"
    assert results in found["c1"].error.message
    assert found["c1"].metadata == 1
    steps = {e.request_id: e.step for e in yard.evidence()}
    assert steps == {"c0": "executed", "c1": "failed", "c2": "executed"}
    assert progress(yard) == Progress(3)


async def test_a_reroute_that_the_log_refuses_is_a_failure() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    place(yard, "c0", model=MODEL)
    yard.cluster.refuse = lambda record: record.topic == yard.catalogue.reroutes
    transactor = await started(yard, backend)
    backend.lose("c0", elsewhere=True)
    await step_until(transactor, yard.results, "the failure")
    assert yard.results()["c0"].status == "failed"
    assert [e.step for e in yard.evidence()] == ["failed"]


def test_a_finished_offset_that_is_read_next_stays_finished() -> None:
    """A successor that has read up to it must not run it again (seed 468 of the simulation)."""
    lane = Lane(next_offset=3, open={2: 10}, finished={3})
    assert lane.progress([2]) == Progress(3, (3,))
