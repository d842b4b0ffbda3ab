"""Budgets through router, worker, hold and takeovers, on the log in memory."""

import functools
from typing import Any

import pytest
from memory_log import MemoryLog
from policy_change_cases import Office, policy
from stream_cases import FLEET, POLICY, START, Yard, drain, step_until
from worker_cases import ScriptedBackend, make_worker

from shunter.audit.replay import replay_steps
from streams.engine.log import LogError, Outgoing
from streams.router.effects import RouteEffects
from streams.router.stage import Router
from topics import decode
from topics.records import headers as h
from topics.records.key_proof import key_headers
from topics.records.money import NANO, Amounts, BudgetState

SECRET = "between gateways and routers"  # noqa: S105 - of these tests
WINDOW_S = 3600.0
POWERED = FLEET.replace("    usd_per_hour: 4.0\n", "    usd_per_hour: 4.0\n    power_w: 700\n")
BUDGETED = (
    POLICY
    + """
tenants:
  acme: {budgets: [{window_s: 3600, requests: 3}]}
  vault: {budgets: [{window_s: 3600, usd: 1.0}]}
  green: {budgets: [{window_s: 3600, wh: 0.5}]}
keys:
  k1: {tenant: vault, budgets: [{window_s: 3600, requests: 1}]}
"""
)


async def routed(
    yard: Yard, text: str = BUDGETED, log: MemoryLog | None = None, fleet: str = FLEET
) -> Router:
    """Let a new router take all over, and route what there is."""
    office = Office(yard)
    router = Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=yard.settings.request_bytes_max,
        duplicate_window_records=yard.settings.duplicate_window_records,
        key_secret=SECRET,
    )
    office.change(to_fleet=fleet, to_policy=text)
    router.take_context(office.active_policy.terms)
    yard.cluster.members.clear()
    await drain(await yard.run(router, log))
    return router


def ends(yard: Yard) -> dict[str, str]:
    return {name: result.error.code for name, result in yard.results().items() if result.error}


def books(yard: Yard) -> dict[tuple[str, int], tuple[Amounts, Amounts]]:
    """The newest state of each account on the log: what is kept, and what was used."""
    newest = {r.key: r.value for r in yard.cluster.records(yard.catalogue.budgets)}
    states = [decode(BudgetState, value) for value in newest.values() if value is not None]
    return {(s.account.rule, s.account.number): (s.reserved, s.used) for s in states}


async def served(yard: Yard, finish: dict[str, dict[str, Any]]) -> None:
    """Let the pool's worker end what is on its lanes: with an answer, or an error."""
    backend = ScriptedBackend()
    worker = make_worker(yard, backend)
    yard.cluster.members.clear()
    transactor = await yard.run(worker, MemoryLog(yard.cluster, "w"))
    await step_until(transactor, lambda: set(finish) <= set(backend.began), "all to run")
    for name, changes in finish.items():
        backend.finish(name, **changes)
    await step_until(transactor, lambda: set(finish) <= set(yard.results()), "their results")


async def test_a_budget_in_requests_is_exact_over_all_partitions() -> None:
    yard = Yard()
    for number in range(8):
        yard.publish(number % yard.catalogue.partitions, id=f"r{number}", tenant="acme")
    yard.publish(id="free", tenant="other")
    await routed(yard)
    placed = [e for e in yard.evidence("placed") if e.tenant == "acme"]
    assert len(placed) == 3
    assert sorted(ends(yard).values()) == ["budget"] * 5
    end_at = (START // WINDOW_S + 1) * WINDOW_S
    errors = [result.error for result in yard.results().values() if result.error]
    assert {error.retry_at for error in errors} == {end_at}
    assert "try again at" in errors[0].message
    ((kept, used),) = books(yard).values()
    assert (kept.requests, used) == (3, Amounts())
    (free,) = [e for e in yard.evidence("placed") if e.tenant == "other"]
    assert free.reserved is None
    found = replay_steps(yard.evidence(), lambda *_: (yard.options, policy(BUDGETED)))
    assert not [each for each in found if each.differences]


async def test_a_class_s_budget_is_each_tenant_s_own_and_that_of_no_other_class() -> None:
    budgets = "    window_s: 45\n    budgets: [{window_s: 3600, requests: 2, wh: 1}]\n"
    limited = POLICY.replace("    window_s: 45\n", budgets)
    yard = Yard()
    for number in range(6):
        tenant = "acme" if number < 4 else "other"
        yard.publish(number % 2, id=f"s{number}", tenant=tenant, task="summarization")
    yard.publish(id="chat", tenant="acme", task="chat")
    await routed(yard, limited, fleet=POWERED)
    assert set(ends(yard).values()) == {"budget"}
    assert sum(name in ends(yard) for name in ("s0", "s1", "s2", "s3")) == 2
    assert not ends(yard).keys() & {"s4", "s5", "chat"}
    told = [result.error.message for result in yard.results().values() if result.error]
    assert "requests of classes.summarization for 'acme'" in told[0]
    kept = {e.request_id: e.reserved for e in yard.evidence() if e.step in ("placed", "held")}
    assert kept["chat"] is None
    assert [(a.rule, a.owner) for a in kept["s4"].accounts] == [("classes.summarization", "other")]
    assert kept["s4"].amounts.nano_wh > 0


async def test_a_successor_knows_what_is_left() -> None:
    yard = Yard()
    yard.publish(id="r1", tenant="acme")
    yard.publish(1, id="r2", tenant="acme")
    await routed(yard)
    for number in range(3, 6):
        yard.publish(number % yard.catalogue.partitions, id=f"r{number}", tenant="acme")
    await routed(yard, log=MemoryLog(yard.cluster, "b"))
    assert len(yard.evidence("placed")) == 3
    assert sorted(ends(yard).values()) == ["budget"] * 2


async def test_the_next_window_begins_anew() -> None:
    yard = Yard()
    for number in range(4):
        yard.publish(id=f"r{number}", tenant="acme")
    await routed(yard)
    yard.clock.at = (START // WINDOW_S + 1) * WINDOW_S
    yard.publish(id="later", tenant="acme", created_at=yard.clock.at)
    await routed(yard, log=MemoryLog(yard.cluster, "b"))
    assert ends(yard) == {"r3": "budget"}
    (later,) = [e for e in yard.evidence() if e.request_id == "later"]
    assert later.reserved is not None
    assert later.reserved.accounts[0].number == START // WINDOW_S + 1


async def test_a_clock_that_is_set_forward_begins_no_window_again() -> None:
    yard = Yard()
    yard.publish(id="r1", tenant="acme")
    await routed(yard)
    await served(yard, {"r1": {}})
    known = books(yard)
    right = yard.clock.at
    yard.clock.at += 7 * WINDOW_S
    await routed(yard, log=MemoryLog(yard.cluster, "b"))
    yard.clock.at = right
    for number in range(2, 6):
        yard.publish(id=f"r{number}", tenant="acme")
    await routed(yard, log=MemoryLog(yard.cluster, "c"))
    ((account, (kept, used)),) = books(yard).items()
    assert [account] == list(known)
    assert (kept.requests, used.requests) == (2, 1)
    assert ends(yard) == {"r4": "budget", "r5": "budget"}


async def test_an_end_settles_what_was_used_in_its_own_transaction() -> None:
    yard = Yard()
    yard.publish(id="r1", tenant="vault", constraints={"pools": ["premium-eu"]})
    await routed(yard)
    (placed,) = yard.evidence("placed")
    assert placed.reserved is not None
    assert placed.promised is not None
    assert placed.reserved.amounts.nano_usd >= round(placed.promised.cost_usd * NANO)
    await served(yard, {"r1": {"device_s": 36.0}})
    (executed,) = yard.evidence("executed")
    assert executed.got is not None
    assert executed.settled is not None
    assert executed.settled.used == Amounts(1, 30, round(executed.got.cost_usd * NANO))
    (result,) = (r for r in yard.cluster.records(yard.catalogue.results))
    settlement = yard.cluster.records(yard.catalogue.accounts)[-1]
    transaction = yard.cluster.transaction_of(settlement)
    assert transaction is yard.cluster.transaction_of(result)
    await routed(yard, log=MemoryLog(yard.cluster, "b"))
    ((kept, used),) = books(yard).values()
    assert (kept, used) == (Amounts(), executed.settled.used)


async def test_a_key_has_a_budget_of_its_own() -> None:
    yard = Yard()
    for name in ("a", "b"):
        proof = list(key_headers(SECRET.encode(), "k1", name, "vault").items())
        yard.publish(id=name, tenant="vault", headers=proof)
    yard.publish(id="c", tenant="vault")
    await routed(yard)
    assert {e.request_id for e in yard.evidence("placed")} == {"a", "c"}
    assert ends(yard) == {"b": "budget"}
    (rejected,) = yard.evidence("rejected")
    assert "keys.k1" in (rejected.message or "")


async def test_a_client_can_neither_settle_nor_reach_the_accounts_by_headers() -> None:
    yard = Yard()
    forged = [(h.SETTLED, b"{}"), (h.ORIGIN, b"nan"), (h.PROFILE, b"{}")]
    yard.publish(id="r1", tenant="acme", headers=forged)
    await routed(yard)
    (passed_on,) = yard.cluster.records(yard.catalogue.accounts)
    assert h.find(passed_on.headers, h.SETTLED) is None
    assert len(yard.evidence("placed")) == 1


async def test_what_costs_more_than_a_whole_window_is_told_so() -> None:
    yard = Yard()
    yard.publish(id="r1", tenant="vault", body={"model": "yard-8b", "max_tokens": 2_000})
    text = BUDGETED.replace("usd: 1.0", "usd: 0.000001")
    await routed(yard, text)
    (result,) = yard.results().values()
    assert result.error is not None
    assert (result.error.code, result.error.retry_at) == ("budget", None)


async def test_a_refused_lane_gives_back_what_was_kept() -> None:
    yard = Yard()
    yard.publish(id="r1", tenant="acme")
    yard.cluster.refuse = lambda record: ".pool." in record.topic
    await routed(yard)
    assert ends(yard) == {"r1": "refused"}
    (failed,) = yard.evidence("failed")
    assert failed.settled is not None
    ((kept, used),) = books(yard).values()
    assert (kept, used) == (Amounts(), Amounts(1, 0, 0))


async def test_a_request_that_the_accounts_refuse_has_a_result() -> None:
    """Only its dead letter told of it: its client waited for ever."""
    yard = Yard()
    yard.publish(id="large", tenant="acme", metadata="x" * 4000)
    yard.publish(id="small", tenant="acme")
    accounts = yard.catalogue.accounts
    yard.cluster.refuse = lambda r: r.topic == accounts and len(r.value or b"") > 4000
    await routed(yard)
    assert ends(yard) == {"large": "refused"}
    assert yard.results()["large"].status == "rejected"
    (letter,) = yard.dead_letters()
    assert h.find(letter.headers, h.REASON) == b"refused"
    steps = [(e.request_id, e.step) for e in yard.evidence()]
    assert sorted(steps) == [("large", "dead_lettered"), ("large", "rejected"), ("small", "placed")]


@pytest.mark.parametrize(("where", "step"), [(RouteEffects, "of"), (Router, "_watched")])
async def test_what_is_kept_for_a_request_that_is_set_aside_is_free_again(
    where: type, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would settle it: the window had less room for the tenant until its end."""
    yard = Yard()
    for n in range(4):
        yard.publish(0, id=f"r{n}", tenant="acme")
    true, calls = getattr(where, step), iter(range(9))

    def fail_first(*args: Any) -> Any:
        if next(calls) == 0:
            raise KeyError("a defect")
        return true(*args)

    monkeypatch.setattr(where, step, fail_first)
    await routed(yard)
    assert len(yard.dead_letters()) == 1
    ((kept, used),) = books(yard).values()
    placed = [e.reserved.amounts for e in yard.evidence("placed") if e.reserved is not None]
    assert (kept, used) == (functools.reduce(Amounts.plus, placed), Amounts())
    assert len(placed) == kept.requests
    yard.publish(id="last", tenant="acme")
    await routed(yard, log=MemoryLog(yard.cluster, "b"))
    assert len(yard.evidence("placed")) == 3


async def test_energy_is_kept_and_settled_as_dollars_are() -> None:
    yard = Yard(fleet=POWERED)
    yard.publish(id="r1", tenant="green", constraints={"pools": ["premium-eu"]})
    await routed(yard, fleet=POWERED)
    (placed,) = yard.evidence("placed")
    assert placed.reserved is not None
    assert placed.promised is not None
    # Of one replica whose price and power are known, energy is in proportion to the price.
    option = yard.options.by_pool["premium-eu"][0]
    assert option.busy_w is not None
    per_usd = option.busy_w / 3600 / option.usd_per_s
    expected = placed.promised.cost_usd * per_usd * NANO
    assert placed.reserved.amounts.nano_wh >= round(expected) > 0
    await served(yard, {"r1": {"device_s": 3.6}})
    (executed,) = yard.evidence("executed")
    assert executed.settled is not None
    assert executed.energy_wh is not None
    assert executed.settled.used.nano_wh == round(executed.energy_wh * NANO)
    assert executed.energy_wh == pytest.approx(3.6 * option.busy_w / 3600)
    # It used more than the window has, so that a successor admits no other.
    yard.publish(id="r2", tenant="green")
    await routed(yard, log=MemoryLog(yard.cluster, "b"), fleet=POWERED)
    assert ends(yard) == {"r2": "budget"}
    told = yard.results()["r2"].error
    assert told is not None
    assert "the budget in wh of tenants.green" in told.message
    sent_on = yard.cluster.records(yard.catalogue.pool_lane("premium-eu", "direct"))[-1]
    assert h.find(sent_on.headers, h.CRITICAL) == h.ENERGY_FIELD


async def test_where_energy_is_not_known_a_budget_of_it_admits_nothing() -> None:
    yard = Yard()
    yard.publish(id="r1", tenant="green")
    yard.publish(id="r2", tenant="acme")
    await routed(yard)
    (result,) = yard.results().values()
    assert result.error is not None
    assert (result.id, (result.error.details or {})["premium-eu"]) == ("r1", "energy_unknown")
    assert "declares no power_w" in result.error.message


async def test_an_account_that_cant_be_read_is_no_empty_one() -> None:
    yard = Yard()
    yard.cluster.publish(Outgoing(yard.catalogue.budgets, b"x", b"no json", [], 0))
    with pytest.raises(LogError, match="can't be read"):
        await routed(yard)
