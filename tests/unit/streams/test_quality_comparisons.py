"""The quality watch: from a request that is chosen to the classes that lose a variant, and back."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hold_cases import make_batcher
from hold_cases import run as run_batcher
from memory_log import Crash, ProcessKilledError
from stream_cases import (
    FLEET,
    MODEL,
    POLICY,
    START,
    Yard,
    drain,
    header,
    make_policy,
    step_until,
)
from worker_cases import MemorySink, ScriptedBackend

from policies.quality.sampling import second_id
from policies.quality.verdict_state import KnownQuality
from shunter.audit.findings import Findings
from shunter.audit.replay import replay_steps
from shunter.audit.results import Results
from shunter.audit.stories import Stories
from streams.engine.log import Outgoing, Record
from streams.evidence.projection import decode_step
from streams.quality.stage import QualityWatch
from streams.router.stage import Router
from topics import (
    BACKGROUND_TASK,
    Comparison,
    QualityEntry,
    Response,
    VariantQuality,
    WatchSpending,
    decode,
    encode,
)
from topics.records import headers as h
from topics.records.evidence import ENDS
from workers.resilience.attempts import Attempts
from workers.resilience.circuit_breaker import Breakers
from workers.stage.chunks import Streams
from workers.stage.outcomes import OutcomeWriter
from workers.stage.worker import Worker

WATCH = """
    watch: {reference: yard-8b-int8, share: 1.0, compare: labels, within: 0.2,
            budget_usd_per_day: 5.0}
"""
WATCHED = POLICY.replace("    output_tokens: 100\n  summ", f"    output_tokens: 100{WATCH}  summ")
PREMIUM, BOARDS, VARIANT, REFERENCE = "premium-eu", "boards-us", "yard-8b-fp8", "yard-8b-int8"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "good or bad?"}]}


def make_router(yard: Yard, known: KnownQuality | None = None) -> Router:
    situation = yard.situation()
    if known is not None:
        situation.view.judged(known.drifted())
    return Router(
        situation,
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=100_000,
        duplicate_window_records=100,
        quality=known,
    )


def make_worker(yard: Yard, pool: str, backend: ScriptedBackend) -> Worker:
    served = yard.options.by_pool[pool]
    breakers = Breakers(pool, [option.variant for option in served], backend, yard.clock)
    writer = yard.evidence_writer()
    return Worker(
        pool,
        served,
        Attempts(backend, breakers, yard.clock, attempts_max=3, uniform=lambda: 0.5),
        writer,
        OutcomeWriter(writer, yard.telemetry, 3),
        yard.clock,
        yard.cancellations,
        Streams(MemorySink(yard)),
        in_flight_max=100,
        in_flight_bytes_max=1 << 20,
    )


async def route(yard: Yard, known: KnownQuality | None = None) -> None:
    yard.cluster.members.clear()
    await drain(await yard.run(make_router(yard, known)))


async def answer(yard: Yard, pool: str, name: str, text: str) -> None:
    """Let the pool's worker answer what is on its lanes."""
    yard.cluster.members.clear()
    backend = ScriptedBackend()
    transactor = await yard.run(make_worker(yard, pool, backend))
    await step_until(transactor, lambda: name in backend.running, f"{name} runs")
    body = {"choices": [{"message": {"content": text}}]}
    backend.finish(name, response=Response(200, body))
    await asyncio.sleep(0)
    await step_until(transactor, lambda: name in yard.results(), f"{name} has ended")


async def release(yard: Yard) -> None:
    """Let what waits go."""
    yard.clock.at += 700
    await drain(await run_batcher(yard, make_batcher(yard)))


def comparisons(yard: Yard) -> list[Comparison]:
    records = yard.cluster.records(yard.catalogue.comparisons)
    return [decode(Comparison, record.value or b"") for record in records]


def comparison(difference: float | None = 1.0, **changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "id": "s",
        "of": "r",
        "at": START,
        "task": "chat",
        "pool": PREMIUM,
        "variant": VARIANT,
        "reference": REFERENCE,
        "compare": "labels",
        "within": 0.2,
        "difference": difference,
        "cost_usd": 0.25,
    }
    return Comparison(**(fields | changes))


def publish(yard: Yard, value: Comparison | bytes) -> Record:
    body = value if isinstance(value, bytes) else encode(value)
    return yard.cluster.publish(Outgoing(yard.catalogue.comparisons, b"k", body))


def entries(yard: Yard) -> KnownQuality:
    known = KnownQuality()
    for record in yard.cluster.records(yard.catalogue.quality):
        known.take(decode(QualityEntry, record.value or b""))
    return known


async def watch(yard: Yard) -> None:
    yard.cluster.members.clear()
    await drain(await yard.run(QualityWatch(yard.evidence_writer(), yard.clock)))


def drifted(verdict: Any = "drifted") -> KnownQuality:
    known = KnownQuality()
    state = VariantQuality(PREMIUM, VARIANT, REFERENCE, verdict=verdict)
    known.take(QualityEntry(variant=state))
    return known


class TestSecondRun:
    async def test_it_is_held_work_on_the_reference_and_no_answer_of_it_is_kept(self) -> None:
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY | {"stream": True}, metadata={"mine": 1}, session="s")
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        (again,) = yard.cluster.records(yard.catalogue.reroutes)
        second = second_id("r1", "reference")
        profile = h.read_profile(again.headers)
        assert (profile.id, profile.task, profile.session) == (second, BACKGROUND_TASK, None)
        assert (profile.regions, profile.tenant) == (None, "default")
        await route(yard)
        (held,) = yard.held()
        assert header(held, h.ANSWER)
        await release(yard)
        await answer(yard, BOARDS, second, "bad")
        (found,) = comparisons(yard)
        expected = comparison(id=second, of="r1", at=START + 3.0, cost_usd=found.cost_usd)
        assert found == replace(expected, answer_group=found.answer_group)
        assert found.answer_group is not None
        assert found.cost_usd > 0
        result = yard.results()[second]
        assert (result.status, result.response, result.metadata) == ("completed", None, None)
        assert result.reference_of == "r1"
        assert yard.results()["r1"].metadata == {"mine": 1}
        assert yard.results()["r1"].reference_of is None
        streams = yard.cluster.records(yard.catalogue.streams)
        assert {record.key for record in streams} == {b"r1"}
        told = yard.evidence("executed")[-1]
        assert (told.request_id, told.comparison) == (second, found)
        evidence = b"".join(
            record.value or b"" for record in yard.cluster.records(yard.catalogue.evidence)
        )
        assert b"Good" not in evidence
        assert b"good or bad" not in evidence

    async def test_an_audit_wants_the_answer_of_a_request_and_none_of_a_second_run(self) -> None:
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY)
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        await route(yard)
        await release(yard)
        await answer(yard, BOARDS, second_id("r1", "reference"), "bad")
        seen = [
            decode_step(record.value or b"")
            for record in yard.cluster.records(yard.catalogue.evidence)
        ]
        results = Results(lambda _salt: None, {})
        for step in seen:
            if step.step in ENDS:
                results.ended(step)
        findings = Findings()
        stories = Stories(findings)
        for step in seen:
            stories.add(step, "here")
        stories.finish(is_whole=True, now=START)
        assert findings.requests == 2
        told = yard.cluster.records(yard.catalogue.results)
        for record in told:
            results.add(record, "here", findings)
        assert not findings.problems
        (first,) = [record for record in told if record.key == b"r1"]
        bare = encode(replace(yard.results()["r1"], response=None))
        results.add(first._replace(value=bare), "here", findings)
        assert [each.kind for each in findings.problems] == ["false_result"]

    async def test_what_is_compared_goes_with_one_that_a_budget_of_energy_counts(self) -> None:
        devices, pools = FLEET.split("pools:\n")
        powered = devices.replace("    usd_per_hour:", "    power_w: 700\n    usd_per_hour:")
        powered += f"pools:\n{pools}"
        yard = Yard(policy=WATCHED, fleet=powered)
        yard.publish(body=BODY)
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        (again,) = yard.cluster.records(yard.catalogue.reroutes)
        counted = replace(h.read_profile(again.headers), id="second", counts_energy=True)
        headers = h.replaced(again.headers, h.encoded(profile=counted))
        topic, number = again.partition.topic, again.partition.number
        yard.cluster.publish(Outgoing(topic, b"second", again.value, headers, number))
        await route(yard)
        (held,) = [each for each in yard.held() if each.key == b"second"]
        assert header(held, h.ANSWER)
        assert h.find(held.headers, h.CRITICAL) == h.ENERGY_FIELD
        await release(yard)
        (sent,) = [each for each in yard.lane(BOARDS, "batch") if each.key == b"second"]
        assert header(sent, h.ANSWER)
        assert h.find(sent.headers, h.CRITICAL) == h.ENERGY_FIELD

    async def test_the_same_label_in_other_clothes_is_no_difference(self) -> None:
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY)
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        await route(yard)
        await release(yard)
        await answer(yard, BOARDS, second_id("r1", "reference"), " good")
        assert [each.difference for each in comparisons(yard)] == [0.0]

    async def test_the_requests_own_constraints_hold_for_it(self) -> None:
        """The reference is in the United States, where this request may not go."""
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY, constraints={"regions": ["eu-west"]})
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        assert not yard.cluster.records(yard.catalogue.reroutes)

    @pytest.mark.parametrize(
        "change",
        [
            ("share: 1.0", "share: 1.0e-9"),
            ("budget_usd_per_day: 5.0", "budget_usd_per_day: 0"),
            ("compare: labels", "compare: greedy"),
            ("data_classes:", "tenants: {default: {watch: false}}\ndata_classes:"),
            ("reference: yard-8b-int8", "reference: yard-8b-fp8"),
        ],
        ids=["share", "budget", "not greedy", "tenant", "is the reference"],
    )
    async def test_nothing_runs_twice_that_the_policy_leaves_out(
        self, change: tuple[str, str]
    ) -> None:
        yard = Yard(policy=WATCHED.replace(*change))
        yard.publish(body=BODY)
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        assert not yard.cluster.records(yard.catalogue.reroutes)

    @pytest.mark.parametrize(
        "bound", ["bound: {regions: [eu-west]}", "quality_min: 0.985"], ids=["bound", "quality"]
    )
    async def test_what_the_class_is_held_to_holds_for_it_by_the_policy_in_force(
        self, bound: str
    ) -> None:
        """The reference is in the United States, and of less quality than the variant."""
        stricter = WATCHED.replace("    ttft_ms", f"    {bound}\n    ttft_ms", 1)
        yard = Yard(policy=stricter)
        yard.publish(body=BODY)
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        assert not yard.cluster.records(yard.catalogue.reroutes)

        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY)
        await route(yard)
        await answer(yard, PREMIUM, "r1", "Good.")
        assert yard.cluster.records(yard.catalogue.reroutes)
        yard.policy = make_policy(stricter)
        await route(yard)
        second = second_id("r1", "reference")
        assert yard.results()[second].status == "rejected"
        assert not yard.held()

    async def test_what_was_spent_today_counts_for_a_router_that_knows_of_nothing_else(
        self,
    ) -> None:
        yard = Yard(policy=WATCHED)
        known = KnownQuality()
        known.take(QualityEntry(spending=WatchSpending("chat", int(START // 86400), 5.0, 9)))
        yard.publish(body=BODY)
        await route(yard, known)
        await answer(yard, PREMIUM, "r1", "Good.")
        assert not yard.cluster.records(yard.catalogue.reroutes)

    async def test_a_client_cannot_write_the_answer_that_is_compared(self) -> None:
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY, headers=[(h.ANSWER, b'{"texts":["x"]}')])
        await route(yard)
        (placed,) = yard.lane(PREMIUM, "direct")
        assert header(placed, h.ANSWER) is None


class TestDrifted:
    async def test_a_class_that_minds_loses_the_variant_and_replays_so(self) -> None:
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY)
        await route(yard, drifted())
        (placed,) = yard.evidence("placed")
        assert placed.placement
        assert placed.placement.pool == "premium-us"
        refused = {c.pool: c.refused for c in placed.candidates if c.refused}
        assert refused[PREMIUM] == "drifted"
        (again,) = replay_steps([placed], lambda _fleet, _policy: (yard.options, yard.policy))
        assert not again.differences

    async def test_a_class_that_does_not_mind_keeps_it(self) -> None:
        indifferent = WATCHED.replace("    watch:", "    minds_drift: false\n    watch:")
        yard = Yard(policy=indifferent)
        yard.publish(body=BODY)
        await route(yard, drifted())
        (placed,) = yard.evidence("placed")
        assert placed.placement
        assert placed.placement.pool == PREMIUM

    async def test_work_that_no_other_variant_may_do_waits_until_it_passes(self) -> None:
        yard = Yard(policy=WATCHED)
        yard.publish(body=BODY, constraints={"pools": [PREMIUM]})
        await route(yard, drifted())
        assert [e.reason for e in yard.evidence("held")] == ["drifted"]
        batcher = make_batcher(yard)
        batcher._situation.view.judged(drifted().drifted())
        transactor = await run_batcher(yard, batcher)
        await transactor.step()
        assert not yard.lane(PREMIUM, "direct")
        batcher._situation.view.judged({})
        yard.clock.at += 2
        await transactor.step()
        assert len(yard.lane(PREMIUM, "direct")) == 1

    async def test_it_is_asked_again_beside_the_reference_until_it_passes(self) -> None:
        """Another variant answered, then the reference, and then the one that has drifted."""
        yard = Yard(policy=WATCHED)
        known = drifted()
        yard.publish(body=BODY)
        await route(yard, known)
        await answer(yard, "premium-us", "r1", "Good.")
        await route(yard, known)
        await release(yard)
        await answer(yard, BOARDS, second_id("r1", "reference"), "good")
        await route(yard, known)
        await release(yard)
        probe = second_id("r1", "judged")
        (record,) = yard.lane(PREMIUM, "batch")
        assert h.read_profile(record.headers).id == probe
        await answer(yard, PREMIUM, probe, "bad")
        found = [(each.pool, each.difference) for each in comparisons(yard)]
        assert found == [("premium-us", 0.0), (PREMIUM, 1.0)]


class TestStage:
    async def test_state_survives_restarts_and_each_comparison_counts_once(self) -> None:
        yard = Yard()
        for point in ("begin", "append", "commit", "committed"):
            for n in range(3):
                publish(yard, comparison(id=f"{point}-{n}"))
            yard.cluster.crash = Crash(point)  # type: ignore[arg-type]
            with pytest.raises(ProcessKilledError):
                await watch(yard)
            await watch(yard)
        (state,) = entries(yard).variants.values()
        assert (state.samples, state.verdict) == (12, "drifted")
        assert entries(yard).spent["chat"] == WatchSpending("chat", int(START // 86400), 3.0, 12)
        (told,) = yard.evidence("drifted")
        assert told.variant_quality
        assert told.variant_quality.samples < 12
        assert told.comparison

    async def test_a_variant_that_has_drifted_passes_again(self) -> None:
        yard = Yard()
        for n in range(12):
            publish(yard, comparison(id=f"a{n}"))
        for n in range(150):
            publish(yard, comparison(0.0, id=f"b{n}"))
        await watch(yard)
        assert [e.step for e in yard.evidence()] == ["drifted", "as_reference"]
        assert not entries(yard).drifted()

    async def test_of_several_references_one_that_it_drifted_from_is_enough(self) -> None:
        yard = Yard()
        for n in range(40):
            publish(yard, comparison(0.0, id=f"a{n}", reference="other"))
            publish(yard, comparison(id=f"b{n}"))
        await watch(yard)
        assert entries(yard).drifted() == {PREMIUM: {VARIANT}}
        assert len(entries(yard).variants) == 2

    @pytest.mark.parametrize(
        "value",
        [
            b"{}",
            b"nonsense",
            encode(replace(comparison(), difference=1.5)),
            encode(replace(comparison(), within=0.0)),
            encode(replace(comparison(), cost_usd=-1.0)),
            json.dumps({"id": "x" * 10}).encode(),
        ],
    )
    async def test_what_is_no_comparison_is_set_aside_and_changes_nothing(
        self, value: bytes
    ) -> None:
        yard = Yard()
        publish(yard, value)
        publish(yard, comparison(None))
        await watch(yard)
        assert len(yard.dead_letters()) == 1
        (state,) = entries(yard).variants.values()
        assert (state.samples, state.uncompared) == (0, 1)
