"""The books: what each window of a budget has kept and used. Whole numbers, and no clock."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor

from policies.config.budgets import Budget, Counted
from policies.config.prices import nano_of
from topics.records.money import Account, Amounts, BudgetState, Reservation, Settlement

NOTHING = Amounts()
# How often windows that are over are looked for, in seconds.
SWEEP_EVERY_S = 60.0
# A window that is over is kept for so long, in case that the clock of the next broker is behind.
KEPT_S = 60.0


@dataclass(frozen=True, slots=True)
class BudgetExceeded:
    """A request that a budget has no room for. ``unit`` is the name of one of its limits.

    ``retry_at`` is when the last of the windows that are full ends, epoch seconds; None where the
    request wants more than a whole window has.
    """

    rule: str
    owner: str
    window_s: float
    unit: str
    retry_at: float | None


class Books:
    """The accounts of one partition. ``reserve`` and ``settle`` are its only changes.

    In each window what ended requests used and what is kept for open ones is at most the limit,
    save for what requests used beyond what was kept for them. Of two times a later one counts, so
    that an owner whose clock is behind its predecessor's opens no window again. No window is given
    up before the brokers have its end behind them: it would begin once more.
    """

    def __init__(self) -> None:
        self._states: dict[Account, BudgetState] = {}
        self._newest: dict[tuple[str, str, float], int] = {}
        self._changed: dict[Account, None] = {}
        self._swept_at = 0.0

    def recall(self, state: BudgetState) -> None:
        """Take a state over from the log."""
        self._states[state.account] = state
        self._see(state.account)

    def state(self, account: Account) -> BudgetState:
        """Return the state of an account; an unknown one has nothing."""
        return self._states.get(account) or BudgetState(account, NOTHING, NOTHING)

    def current(self, counted: Counted, now: float) -> BudgetState:
        """Return the state of a budget's window in which a request of now would count."""
        rule, owner, budget = counted
        return self.state(self._account(rule, owner, budget.window_s, now))

    def states(self) -> Iterator[BudgetState]:
        """Yield all states."""
        yield from self._states.values()

    def reserve(
        self, counted: Sequence[Counted], amounts: Amounts, home: int, now: float
    ) -> Reservation | BudgetExceeded:
        """Keep amounts for a request in all its budgets, or in none if one has no room.

        Args:
            counted: its budgets.
            amounts: what it may use.
            home: the partition of these books.
            now: epoch seconds.
        """
        accounts = []
        full: list[BudgetExceeded] = []
        for rule, owner, budget in counted:
            account = self._account(rule, owner, budget.window_s, now)
            accounts.append(account)
            self._see(account)
            beyond = self._beyond(account, budget, amounts)
            if beyond is not None:
                full.append(beyond)
        if full:
            return _last(full)
        for account in accounts:
            state = self.state(account)
            self._put(BudgetState(account, state.reserved.plus(amounts), state.used))
        return Reservation(home, tuple(accounts), amounts)

    def settle(self, settlement: Settlement) -> None:
        """Free what was kept for a request that has ended, and count what it used."""
        kept = settlement.reserved.amounts
        for account in settlement.reserved.accounts:
            state = self.state(account)
            used = state.used.plus(settlement.used)
            self._put(BudgetState(account, state.reserved.minus(kept), used))

    def take_changes(self, now: float) -> Iterator[tuple[Account, BudgetState | None]]:
        """Yield the accounts that have changed since; None for one that is over and has ended.

        Args:
            now: the time of the brokers, epoch seconds.
        """
        if not 0.0 <= now - self._swept_at < SWEEP_EVERY_S:
            self._swept_at = now
            self._changed |= dict.fromkeys(a for a in self._states if self._is_over(a, now))
        changed, self._changed = self._changed, {}
        for account in changed:
            if self._is_over(account, now):
                del self._states[account]
                self._newest.pop((account.rule, account.owner, account.window_s), None)
                yield account, None
            else:
                yield account, self.state(account)

    def _is_over(self, account: Account, now: float) -> bool:
        return account.ends_at + KEPT_S <= now and self.state(account).reserved == NOTHING

    def _account(self, rule: str, owner: str, window_s: float, now: float) -> Account:
        newest = self._newest.get((rule, owner, window_s), 0)
        return Account(rule, owner, window_s, max(newest, floor(now / window_s)))

    def _see(self, account: Account) -> None:
        line = (account.rule, account.owner, account.window_s)
        self._newest[line] = max(self._newest.get(line, 0), account.number)

    def _put(self, state: BudgetState) -> None:
        self._states[state.account] = state
        self._changed[state.account] = None

    def _beyond(self, account: Account, budget: Budget, amounts: Amounts) -> BudgetExceeded | None:
        state = self.state(account)
        taken = state.reserved.plus(state.used).plus(amounts)
        nano_usd = None if budget.usd is None else nano_of(budget.usd)
        nano_wh = None if budget.wh is None else nano_of(budget.wh)
        found = None
        for unit, limit, wants, one in (
            ("requests", budget.requests, taken.requests, amounts.requests),
            ("tokens", budget.tokens, taken.tokens, amounts.tokens),
            ("usd", nano_usd, taken.nano_usd, amounts.nano_usd),
            ("wh", nano_wh, taken.nano_wh, amounts.nano_wh),
        ):
            if limit is None or wants <= limit:
                continue
            retry_at = None if one > limit else account.ends_at
            found = BudgetExceeded(account.rule, account.owner, account.window_s, unit, retry_at)
            if retry_at is None:
                return found
        return found


def _last(full: Sequence[BudgetExceeded]) -> BudgetExceeded:
    """Return what a request has to wait for longest; for ever, where a whole window is less."""
    return max(full, key=lambda each: (each.retry_at is None, each.retry_at or 0.0))
