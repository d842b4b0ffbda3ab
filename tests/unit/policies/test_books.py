"""The books of budgets: whatever comes, nothing is spent twice, and no limit is passed unseen."""

from dataclasses import dataclass, field
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import POLICY, PROPERTY, a_policy

from policies import DeclarationError
from policies.config.budgets import Budget
from policies.placement.books import KEPT_S, SWEEP_EVERY_S, Books, BudgetExceeded
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
