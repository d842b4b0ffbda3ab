"""The budgets of a backtest: what requests keep and use of them, as routers count it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from policies.config.budgets import Budget
from policies.config.options import Options
from policies.config.policy import Policy
from policies.placement.books import Books, BudgetExceeded
from policies.placement.decide import Decision
from policies.placement.inputs import Inputs
from policies.placement.reservation import amounts_of, beyond_budget
from topics import Profile
from topics.records.money import NANO, Account, Amounts, Settlement


class ReplayAccounts:
    """The accounts of all tenants and keys of a trace. Windows count from its start."""

    def __init__(self, options: Options, policy: Policy) -> None:
        self._options = options
        self._policy = policy
        self._books = Books()
        self._limits: dict[Account, Budget] = {}
        self._refused: dict[Account, int] = {}

    def reserve(
        self, profile: Profile, decision: Decision, inputs: Inputs, now: float
    ) -> tuple[Decision, Profile]:
        """Return decision and profile with what its budgets keep for it, or its rejection."""
        counted = self._policy.budgets_for(profile)
        if not counted or decision.action not in ("place", "hold"):
            return decision, profile
        amounts = amounts_of(profile, decision, inputs, self._options, self._policy, None)
        found = self._books.reserve(counted, amounts, 0, now)
        if isinstance(found, BudgetExceeded):
            self._refuse(found, counted, now)
            return beyond_budget(decision, found), profile
        self._limits |= zip(found.accounts, (budget for _, _, budget in counted), strict=True)
        return decision, replace(profile, reserved=found)

    def settle(self, profile: Profile, used: Amounts) -> None:
        """Count what a request used that has ended; energy only where a budget is in it."""
        if profile.reserved is not None:
            counted = used if profile.counts_energy else replace(used, nano_wh=0)
            self._books.settle(Settlement(profile.reserved, counted))

    def told(self) -> Iterator[dict[str, Any]]:
        """Yield each account: its limits, what was used of them, and the requests refused."""
        for account in sorted(self._limits, key=lambda a: (a.rule, a.owner, a.window_s, a.number)):
            budget, used = self._limits[account], self._books.state(account).used
            yield {
                "rule": account.rule,
                "owner": account.owner,
                "window_s": account.window_s,
                "from_s": account.number * account.window_s,
                "limits": budget.model_dump(exclude={"window_s"}, exclude_none=True),
                "used": {
                    "requests": used.requests,
                    "tokens": used.tokens,
                    "usd": used.nano_usd / NANO,
                    "wh": used.nano_wh / NANO,
                },
                "refused": self._refused.get(account, 0),
            }

    def _refuse(
        self, beyond: BudgetExceeded, counted: Sequence[tuple[str, str, Budget]], now: float
    ) -> None:
        for rule, owner, budget in counted:
            if (rule, budget.window_s) == (beyond.rule, beyond.window_s):
                account = Account(rule, owner, budget.window_s, int(now // budget.window_s))
                self._limits[account] = budget
                self._refused[account] = self._refused.get(account, 0) + 1
