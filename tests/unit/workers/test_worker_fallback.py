"""A worker on a model server that fails: its requests go elsewhere, and none is lost."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from decisions import decide_in
from hostile_server import CASES, limits_for
from memory_log import MemoryLog
from model_server import good, serving
from openai_cases import of_yard
from stream_cases import START, Yard, heartbeat, make_profile, step_until
from worker_cases import POOL, VARIANT, place, worker_on

from policies import allow_again
from topics import Fallback, Profile, VariantStatus
from topics.records import headers as h
from workers.backends.drain import Evacuation


@pytest.mark.parametrize("name", CASES)
async def test_whatever_a_server_does_each_request_ends_and_the_worker_goes_on(name: str) -> None:
    behave, code, retry, _ = CASES[name]
    yard = Yard()
    place(yard, "c0")
    limits = limits_for(code) | {"answer_bytes_max": 1024 * 1024}
    async with (
        serving(behave) as server,
        of_yard(yard, server.base_url, **limits) as backend,
    ):
        worker, breakers = worker_on(yard, backend)
        transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
        await step_until(transactor, yard.evidence, "the end of the first")
        server.behave = good
        if breakers.state(VARIANT) == "open":
            # Three tries at one server that all fail open its circuit.
            await breakers._probe(VARIANT)
        place(yard, "c1")
        backend._declared = backend._declared.model_copy(update={"first_token_s_max": 10.0})
        await step_until(transactor, lambda: "c1" in yard.results(), "the second")
    (first, *_) = yard.evidence()
    assert (first.request_id, first.reason) == ("c0", code)
    assert first.step == ("failed" if retry == "never" else "fell_back")
    reroutes = yard.cluster.records(yard.catalogue.reroutes)
    assert [r.key for r in reroutes][:1] == ([] if retry == "never" else [b"c0"])
    assert yard.results()["c1"].status == "completed"


async def test_what_stands_in_the_lanes_of_a_pool_that_is_gone_is_evacuated() -> None:
    yard = Yard()
    place(yard, "now")
    place(yard, "later", lane="batch")
    place(yard, "late", deadline=START - 1.0)
    worker, breakers = worker_on(yard, Evacuation(yard.options.by_pool[POOL]))
    transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
    await step_until(transactor, lambda: len(yard.evidence()) == 3, "the end of all")
    assert {e.request_id: (e.step, e.reason) for e in yard.evidence()} == {
        "now": ("fell_back", "unavailable"),
        "later": ("fell_back", "unavailable"),
        "late": ("expired", "deadline_passed"),
    }
    assert yard.results()["late"].status == "expired"
    reroutes = yard.cluster.records(yard.catalogue.reroutes)
    assert sorted(r.key or b"" for r in reroutes) == [b"later", b"now"]
    assert all(POOL in h.read_profile(r.headers).exclude_pools for r in reroutes)
    assert breakers.state(VARIANT) == "closed"


async def test_a_refusal_is_in_the_result_and_not_in_the_evidence() -> None:
    yard = Yard()
    place(yard, "c0")
    behave = CASES["400"][0]
    async with serving(behave) as server, of_yard(yard, server.base_url) as backend:
        worker, _ = worker_on(yard, backend)
        transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
        await step_until(transactor, yard.results, "the failure")
    result = yard.results()["c0"]
    assert result.response is not None
    assert (result.response.status_code, result.response.body["error"]["message"]) == (400, "no")


async def test_when_the_server_goes_all_that_waits_goes_elsewhere_within_two_seconds() -> None:
    yard = Yard()

    async def hold(_: Any) -> None:
        await asyncio.sleep(60)

    for n in range(40):
        place(yard, f"c{n}", number=n % 4)
    async with serving(hold) as server, of_yard(yard, server.base_url) as backend:
        worker, breakers = worker_on(yard, backend)
        transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
        await step_until(transactor, lambda: len(server.asked) == 4, "all places are taken")
        await server.vanish()
        await step_until(transactor, lambda: len(yard.evidence()) == 40, "all have gone", 2.0)
        assert breakers.state(VARIANT) == "open"
    reasons = {evidence.reason for evidence in yard.evidence("fell_back")}
    assert reasons <= {"connect", "circuit_open", "connection_lost"}
    profiles = [
        h.read(r.headers, h.PROFILE, Profile) for r in yard.cluster.records(yard.catalogue.reroutes)
    ]
    assert all((p.attempt, p.exclude_pools) == (2, (POOL,)) for p in profiles)
    assert not yard.results()


def circuit(state: Any) -> dict[str, VariantStatus]:
    return {VARIANT: VariantStatus(circuit=state)}


@pytest.mark.parametrize("state", ["open", "half_open"])
def test_nothing_is_placed_where_the_circuit_is_not_closed(state: Any) -> None:
    yard = Yard()
    situation = yard.situation()
    profile = make(yard)
    assert decide_in(profile, situation, START).option.pool == POOL  # type: ignore[union-attr]
    situation.view.report(heartbeat(yard.options, POOL, START, variants=circuit(state)))
    decision = decide_in(profile, situation, START)
    assert decision.option is not None
    assert decision.option.pool == "premium-us"
    refused = {c.pool: c.refused for c in decision.candidates if c.refused}
    assert refused[POOL] == "circuit_open"
    # One worker that can reach its server is enough.
    second = heartbeat(yard.options, POOL, START, variants=circuit("closed"), instance="worker-2")
    situation.view.report(second)
    assert decide_in(profile, situation, START).option.pool == POOL  # type: ignore[union-attr]


def test_a_request_that_only_failing_pools_may_serve_is_held() -> None:
    yard = Yard(live=[POOL])
    situation = yard.situation()
    situation.view.report(heartbeat(yard.options, POOL, START, variants=circuit("open")))
    decision = decide_in(make(yard, constraints={"pools": [POOL]}), situation, START)
    assert (decision.action, decision.reason) == ("hold", "circuit_open")


def make(yard: Yard, **fields: Any) -> Profile:
    return make_profile(yard.policy, **fields)


@pytest.mark.parametrize(
    ("reason", "pools", "excluded"),
    [
        ("connect", [POOL], ()),
        ("circuit_open", [POOL], ()),
        ("context_too_long", [POOL], (POOL,)),
        ("connect", [POOL, "premium-us"], (POOL,)),
    ],
)
def test_a_pool_is_tried_again_only_where_there_is_no_other_and_it_may_help(
    reason: str, pools: list[str], excluded: tuple[str, ...]
) -> None:
    yard = Yard()
    profile = make(yard, constraints={"pools": pools})
    failed = replace(profile, attempt=2, exclude_pools=(POOL,), fallbacks=(Fallback(POOL, reason),))
    assert allow_again(failed, yard.options, yard.policy).exclude_pools == excluded


def test_what_the_client_excludes_stays_excluded() -> None:
    yard = Yard()
    profile = make(yard, constraints={"pools": [POOL], "exclude_pools": [POOL]})
    assert allow_again(profile, yard.options, yard.policy).exclude_pools == (POOL,)
