"""A worker goes by the policy and the fleet in force, and runs nothing that they forbid."""

from dataclasses import replace
from typing import Any

import pytest
from memory_log import MemoryLog
from policy_change_cases import fleet, policy
from stream_cases import FLEET, POLICY, Yard, drain, make_profile
from worker_cases import POOL, ScriptedBackend, make_worker, place

from policies import compile_options, situation
from shunter.processes.worker import in_force
from streams.config.active_policy import ActivePolicy, DecisionContext
from streams.config.declarations import Declarations, text_of
from streams.config.token_counting import TokenCounter
from topics import Declared, PolicyChange, PolicyEntry, PolicyLog, encode

BOUND = POLICY + "tenants: {acme: {bound: {regions: [us-east]}}}\n"
CHEAP = FLEET.replace("usd_per_hour: 4", "usd_per_hour: 3", 1)
SMALLER = FLEET.replace("max_batch: 32", "max_batch: 16")


class Pool:
    """A worker of the pool, on the log in memory, whose terms may be changed."""

    def __init__(self) -> None:
        self.yard, self.backend = Yard(), ScriptedBackend()
        here = situation(self.yard.options, self.yard.policy)
        terms = DecisionContext(here, self.yard.evidence_writer(), TokenCounter({}))
        self.active = ActivePolicy(terms, lambda _: TokenCounter({}))
        self.worker = make_worker(self.yard, self.backend)
        self.worker.take_context(self.active.terms)

    async def run(self) -> Any:
        keep = self.active.keep(self.worker.take_context)
        return await self.yard.run(self.worker, MemoryLog(self.yard.cluster, "a"), before_step=keep)

    def change(self, to_policy: str = POLICY, to_fleet: str = FLEET) -> None:
        self.active.change(Declarations(fleet(to_fleet), policy(to_policy)))


async def finish(pool: Pool, transactor: Any, *names: str) -> None:
    await drain(transactor)
    for name in names:
        pool.backend.finish(name)
    for _ in range(100):
        if not pool.worker.has_open:
            break
        await transactor.step()


async def test_an_execution_names_the_versions_that_it_ran_by() -> None:
    pool = Pool()
    transactor = await pool.run()
    place(pool.yard, "c1")
    await finish(pool, transactor, "c1")
    pool.change(BOUND, CHEAP)
    place(pool.yard, "c2")
    await finish(pool, transactor, "c2")
    place(pool.yard, "c3")
    await drain(transactor)
    pool.change()
    await finish(pool, transactor, "c3")
    ended = {e.request_id: e for e in pool.yard.evidence("executed")}
    first, second = ended["c1"], ended["c2"]
    assert ended["c3"].fleet_version == second.fleet_version
    assert (first.policy_version, first.fleet_version) == (policy().version, fleet().version)
    assert (second.policy_version, second.fleet_version) == (
        policy(BOUND).version,
        fleet(CHEAP).version,
    )
    assert first.got is not None
    assert second.got is not None
    assert second.got.cost_usd < first.got.cost_usd


async def test_what_a_new_policy_binds_elsewhere_does_not_run_here() -> None:
    pool = Pool()
    transactor = await pool.run()
    pool.change(BOUND)
    place(pool.yard, "away", tenant="acme")
    place(pool.yard, "stays", tenant="other")
    await finish(pool, transactor, "stays")
    assert pool.backend.began == ["stays"]
    (fell_back,) = pool.yard.evidence("fell_back")
    assert (fell_back.request_id, fell_back.reason) == ("away", "outside_bound")
    assert "tenants.acme" in (fell_back.message or "")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (POLICY + f"never: [{{name: far, pools: [{POOL}]}}]\n", "never"),
        (POLICY.replace("    deadline_s:", "    quality_min: 1\n    deadline_s:"), "quality"),
    ],
)
async def test_what_a_new_policy_sends_here_no_more_does_not_run_here(
    changed: str, reason: str
) -> None:
    pool = Pool()
    transactor = await pool.run()
    place(pool.yard, "c1", profile=make_profile(pool.yard.policy, id="c1"))
    pool.change(changed)
    await finish(pool, transactor)
    (fell_back,) = pool.yard.evidence("fell_back")
    assert fell_back.reason == reason
    assert not pool.backend.began


async def test_what_was_placed_at_other_hardware_does_not_run_here() -> None:
    pool = Pool()
    transactor = await pool.run()
    pool.change(to_fleet=FLEET.replace("region: eu-west", "region: mars", 1))
    place(pool.yard, "c1", profile=make_profile(pool.yard.policy, id="c1"))
    await finish(pool, transactor)
    (fell_back,) = pool.yard.evidence("fell_back")
    assert fell_back.reason == "not_as_placed"
    assert not pool.backend.began


def test_other_hardware_is_not_what_the_worker_runs_by() -> None:
    pool = Pool()
    pool.change(to_fleet=SMALLER)
    pool.worker.take_context(pool.active.terms)
    assert pool.worker.fleet is not None
    assert pool.worker.fleet.version == fleet().version


def test_a_worker_starts_with_what_is_in_force() -> None:
    own = Declarations(fleet(), policy())
    assert in_force(PolicyLog(), own, POOL) is own
    found = in_force(said(CHEAP), own, POOL)
    assert found.fleet.version == fleet(CHEAP).version
    without = fleet().model_dump(mode="json", exclude_none=True)
    del without["pools"][POOL]
    gone = compile_options(type(own.fleet).model_validate(without))
    assert POOL not in gone.by_pool
    assert in_force(said(CHEAP), own, "boards-of-nobody") is own
    assert in_force(said(CHEAP, damaged=True), own, POOL) is own


def said(text: str, *, damaged: bool = False) -> PolicyLog:
    log, declared = PolicyLog(), fleet(text)
    told = Declared("fleet", declared.version, text_of(declared), 1.0, "test")
    if damaged:
        told = replace(told, text="{}")
    change = PolicyChange(1, "apply", 1.0, "test", None, declared.version)
    for entry in (PolicyEntry(declared=told), PolicyEntry(change=change)):
        log.add(encode(entry))
    return log
