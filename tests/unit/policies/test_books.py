"""The books of budgets: whatever comes, nothing is spent twice, and no limit is passed unseen."""

from dataclasses import dataclass, field, replace
from math import floor

import pytest
from decisions import decide_in
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import (
    FLEET,
    NOW,
    POLICY,
    PROPERTY,
    a_policy,
    a_situation,
    bulk,
    nobody_lives,
    profile,
)

from policies import DeclarationError, Situation, inputs_of
from policies.config.budgets import Budget
from policies.config.prices import nano_of
from policies.placement.books import KEPT_S, SWEEP_EVERY_S, Books, BudgetExceeded
from policies.placement.reservation import amounts_of, beyond_budget
from policies.scoring.estimate import estimate
from topics import Profile
from topics.records.money import Amounts, BudgetState, Reservation, Settlement

BUDGETED = (
    POLICY
    + """
tenants:
  acme: {budgets: [{window_s: 3600, requests: 3}, {window_s: 86400, usd: 0.5}]}
keys:
  k1: {tenant: acme, budgets: [{window_s: 3600, tokens: 1000}]}
default_tenant: {budgets: [{window_s: 60, requests: 100}]}
"""
)
HOUR = Budget(window_s=3600.0, requests=10, tokens=1000, usd=0.000001, wh=0.0000015)


def kept(found: Reservation | BudgetExceeded) -> Reservation:
    assert isinstance(found, Reservation)
    return found


def beyond(found: Reservation | BudgetExceeded) -> BudgetExceeded:
    assert isinstance(found, BudgetExceeded)
    return found


def test_a_policy_counts_a_request_by_tenant_and_key() -> None:
    policy = a_policy(BUDGETED)
    named = [(rule, owner, b.window_s) for rule, owner, b in policy.budgets_of("acme", "k1")]
    assert named == [
        ("tenants.acme", "acme", 3600.0),
        ("tenants.acme", "acme", 86400.0),
        ("keys.k1", "k1", 3600.0),
    ]
    assert [each[:2] for each in policy.budgets_of("other", None)] == [("default_tenant", "other")]
    assert a_policy().budgets_of("acme", "k1") == []
    assert policy.faster(10).budgets_of("acme", None)[0][2].window_s == 360.0
    assert a_policy().version == a_policy(POLICY + "keys: {}\n").version


def test_a_policy_counts_a_class_for_each_tenant() -> None:
    budgets = "deadline_s: 3600, budgets: [{window_s: 60, wh: 5}],"
    policy = a_policy(POLICY.replace("deadline_s: 3600,", budgets))
    ((rule, owner, budget),) = policy.budgets_of("acme", None, ("bulk",))
    assert (rule, owner, budget.wh) == ("classes.bulk", "acme", 5.0)
    assert policy.budgets_of("acme", None, ("chat",)) == []
    # Before its class is known, each request may be one that is counted.
    assert policy.is_counted("acme", None)
    assert not a_policy().is_counted("acme", None)
    # A class that was recognised spends of the default class's budgets too.
    assert policy.classes_of("bulk", is_kept=True) == ("bulk", "chat")
    assert policy.classes_of("bulk", is_kept=False) == ("bulk",)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("keys: {k1: {budgets: [{window_s: 60, usd: 1.0}]}}", "must name its tenant"),
        ("default_tenant: {budgets: [{window_s: 60}]}", "must limit requests, tokens, usd or wh"),
        (
            "default_tenant: {budgets: [{window_s: 60, usd: 1.0}, {window_s: 60, tokens: 5}]}",
            "two budgets of one window_s",
        ),
    ],
)
def test_what_is_no_budget_is_refused(text: str, what: str) -> None:
    with pytest.raises(DeclarationError, match=what):
        a_policy(POLICY + text + "\n")


def test_a_full_window_says_when_the_next_begins() -> None:
    books, counted = Books(), [("tenants.a", "a", Budget(window_s=60.0, requests=1))]
    kept(books.reserve(counted, Amounts(1, 5, 7), 0, 90.0))
    full = beyond(books.reserve(counted, Amounts(1, 5, 7), 0, 100.0))
    assert (full.unit, full.retry_at) == ("requests", 120.0)
    kept(books.reserve(counted, Amounts(1, 5, 7), 0, 120.0))


def test_what_no_window_has_room_for_need_not_come_again() -> None:
    books, counted = Books(), [("tenants.a", "a", Budget(window_s=60.0, tokens=10))]
    assert beyond(books.reserve(counted, Amounts(1, 11, 0), 0, 0.0)).retry_at is None


def test_all_budgets_keep_it_or_none() -> None:
    books = Books()
    tenant = ("tenants.a", "a", Budget(window_s=60.0, requests=5))
    key = ("keys.k", "k", Budget(window_s=30.0, requests=1))
    kept(books.reserve([tenant, key], Amounts(1, 0, 0), 0, 0.0))
    assert beyond(books.reserve([tenant, key], Amounts(1, 0, 0), 0, 1.0)).rule == "keys.k"
    assert sum(state.reserved.requests for state in books.states()) == 2


@pytest.mark.parametrize("turn", [1, -1])
def test_of_several_full_budgets_the_one_to_wait_for_longest_is_told(turn: int) -> None:
    minute = ("tenants.a", "a", Budget(window_s=60.0, requests=1))
    hour = ("keys.k", "k", Budget(window_s=3600.0, requests=1))
    small = ("classes.c", "a", Budget(window_s=60.0, tokens=4))
    books = Books()
    kept(books.reserve([minute, hour, small][::turn], Amounts(1, 4, 0), 0, 0.0))
    assert beyond(books.reserve([minute, hour][::turn], Amounts(1, 1, 0), 0, 1.0)).rule == "keys.k"
    never = beyond(books.reserve([minute, small, hour][::turn], Amounts(1, 5, 0), 0, 1.0))
    assert (never.rule, never.retry_at) == ("classes.c", None)


def test_a_refusal_says_whose_budget_it_is_and_whether_to_come_again() -> None:
    decision = decide_in(profile(), a_situation(), NOW)

    def told(rule: str, retry_at: float | None) -> str:
        found = beyond_budget(decision, BudgetExceeded(rule, "acme", 60.0, "usd", retry_at))
        assert (found.action, found.reason, found.retry_at) == ("reject", "budget", retry_at)
        return found.message or ""

    assert "try again at 2023-11-14T" in told("tenants.acme", NOW)
    assert "less for 60 s than this request may use" in told("tenants.acme", None)
    # Rules of many owners say which.
    for rule, named in (("tenants.acme", False), ("default_tenant", True), ("classes.c", True)):
        assert ("for 'acme'" in told(rule, None)) is named


def test_a_clock_that_is_behind_opens_no_window_again() -> None:
    books, counted = Books(), [("tenants.a", "a", Budget(window_s=60.0, requests=1))]
    kept(books.reserve(counted, Amounts(1, 0, 0), 0, 60.5))
    again = Books()
    for _, state in books.take_changes(60.5):
        assert state is not None
        again.recall(state)
    assert beyond(again.reserve(counted, Amounts(1, 0, 0), 0, 59.9)).retry_at == 120.0


def test_a_window_that_is_over_is_dropped_when_nothing_is_open() -> None:
    books, counted = Books(), [("tenants.a", "a", Budget(window_s=60.0, requests=9))]
    first = kept(books.reserve(counted, Amounts(1, 0, 0), 0, 0.0))
    late = 60.0 + KEPT_S + SWEEP_EVERY_S
    assert [state is None for _, state in books.take_changes(late)] == [False]
    books.settle(Settlement(first, Amounts(1, 3, 4)))
    assert [state for _, state in books.take_changes(late)] == [None]
    assert list(books.states()) == []


def reserved(asked: Profile, where: Situation, output_tokens_max: int | None = None) -> Amounts:
    decision, inputs = decide_in(asked, where, NOW), inputs_of(asked, where, NOW)
    return amounts_of(asked, decision, inputs, where.options, where.policy, output_tokens_max)


def alone_nano(asked: Profile, where: Situation, pool: str, variant: str) -> int:
    """The price of a request that is served alone there."""
    standing = where.view.standing(where.options.of(pool, variant))
    found = estimate(asked, standing, where.policy.estimates.transport_s)
    return nano_of(found.cost_usd)


def test_the_longest_reply_is_kept_at_its_price() -> None:
    where, asked = a_situation("silicon"), profile(output_tokens_high=700)
    silicon = ("silicon", "llama-fp8")
    for limit, reply in ((None, 700), (300, 300), (900, 900)):
        longest = profile(output_tokens=reply)
        found = reserved(asked, where, limit)
        assert found == Amounts(1, 400 + reply, alone_nano(longest, where, *silicon))
    assert reserved(profile(), where).tokens == 400 + 200
    text = profile(model="vector", operation="embeddings", output_tokens=0)
    assert reserved(text, a_situation("small"), 50).tokens == 400


def test_what_waits_is_kept_at_the_price_of_one_served_alone() -> None:
    where = a_situation("board")
    decision = decide_in(bulk(), where, NOW)
    assert decision.action == "hold"
    assert decision.promised is not None
    found = reserved(bulk(), where).nano_usd
    assert found == alone_nano(bulk(), where, "board", "llama-int8")
    assert found > 2 * nano_of(decision.promised.cost_usd)


def test_where_no_pool_is_alive_the_dearest_that_may_serve_it_counts() -> None:
    # What takes batches alone is the dearest by far, and of the others the chip.
    fleet = FLEET.replace("usd_per_hour: 0.4}", "usd_per_hour: 4000}").replace(
        "usd_per_hour: 9.0}", "usd_per_hour: 900}"
    )
    where = nobody_lives(fleet)
    bf16 = ("premium", "llama-bf16")
    for asked, place in ((bulk(), ("board", "llama-int8")), (profile(), ("silicon", "llama-fp8"))):
        assert reserved(asked, where).nano_usd == alone_nano(asked, where, *place)
    assert reserved(profile(pools=("premium",)), where).nano_usd == alone_nano(
        profile(), where, *bf16
    )
    never = replace(where, policy=a_policy(POLICY + "never: [{name: chips, pools: [silicon]}]\n"))
    assert reserved(profile(), never).nano_usd == alone_nano(profile(), where, *bf16)


def test_energy_is_kept_for_who_counts_it_whatever_a_tier_is_charged() -> None:
    fleet = FLEET.replace("usd_per_hour: 4.0}", "usd_per_hour: 4.0, power_w: 700}")
    where = a_situation("premium", fleet=fleet)
    assert reserved(profile(), where).nano_wh == 0
    plain = reserved(profile(counts_energy=True), where)
    dear = reserved(profile(counts_energy=True, price_factor=2.0), where)
    assert dear.nano_wh == plain.nano_wh > 0
    assert dear.nano_usd == pytest.approx(2 * plain.nano_usd, abs=1)


@dataclass
class Ledger:
    """The same by sums over all that ever happened."""

    open: list[Reservation] = field(default_factory=list)
    ended: list[Settlement] = field(default_factory=list)


_some = st.integers(0, 400)
amounts = st.builds(Amounts, st.just(1), _some, _some, _some)


@PROPERTY
@given(st.data())
def test_the_books_are_the_sums_and_stay_within_their_limits(data: st.DataObject) -> None:
    books, ledger, now = Books(), Ledger(), 7_000.0
    counted = [
        ("tenants.a", "a", HOUR),
        ("keys.k", "k", Budget(window_s=600.0, requests=4, usd=0.0000005)),
    ]
    log: dict[object, BudgetState | None] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.integers(-30, 400))
        if ledger.open and data.draw(st.booleans()):
            reserved = ledger.open.pop(data.draw(st.integers(0, len(ledger.open) - 1)))
            settlement = Settlement(reserved, data.draw(amounts))
            books.settle(settlement)
            ledger.ended.append(settlement)
        else:
            found = books.reserve(counted, data.draw(amounts), 0, now)
            if isinstance(found, Reservation):
                ledger.open.append(found)
        log |= dict(books.take_changes(now))
        if data.draw(st.integers(0, 5)) == 0:
            # A successor has what was committed.
            books = Books()
            for state in log.values():
                if state is not None:
                    books.recall(state)
        _check(books, ledger, counted)


def _check(books: Books, ledger: Ledger, counted: list[tuple[str, str, Budget]]) -> None:
    limits = {rule: budget for rule, _, budget in counted}
    for state in books.states():
        account = state.account
        kept_for = [r.amounts for r in ledger.open if account in r.accounts]
        used = [s.used for s in ledger.ended if account in s.reserved.accounts]
        past = [s for s in ledger.ended if account in s.reserved.accounts]
        for unit in ("requests", "tokens", "nano_usd", "nano_wh"):
            assert getattr(state.reserved, unit) == sum(getattr(a, unit) for a in kept_for)
            assert getattr(state.used, unit) == sum(getattr(a, unit) for a in used)
        over = {
            unit: sum(
                max(0, getattr(s.used, unit) - getattr(s.reserved.amounts, unit)) for s in past
            )
            for unit in ("tokens", "nano_usd", "nano_wh")
        }
        budget, taken = limits[account.rule], state.reserved.plus(state.used)
        assert budget.requests is None or taken.requests <= budget.requests
        assert budget.tokens is None or taken.tokens <= budget.tokens + over["tokens"]
        assert budget.usd is None or taken.nano_usd <= floor(budget.usd * 1e9) + over["nano_usd"]
        assert budget.wh is None or taken.nano_wh <= round(budget.wh * 1e9) + over["nano_wh"]
