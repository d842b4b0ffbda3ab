"""Budgets in a simulation: what is asked for, what must hold of the books, and broken rules."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from simulation.aftermath import Aftermath
from simulation.requests import DEADLINES_S, POOLS
from streams.engine.log import Log, Partition, Record
from streams.engine.stage import Effect
from streams.router.accounts import Accounts
from streams.router.stage import Router
from topics import Evidence, decode
from topics.records.money import NANO, Account, Amounts, BudgetState
from workers.stage.worker import Worker

if TYPE_CHECKING:
    from simulation.world import World

THRIFTY = "thrifty"
WINDOW_S, REQUESTS, USD, WH = 20.0, 3, 0.0004, 0.07
THRIFTY_REQUESTS = 8
BUDGETS = f"""\
  {THRIFTY}: {{budgets: [{{window_s: {WINDOW_S:g}, requests: {REQUESTS}, usd: {USD}, wh: {WH}}}]}}
"""
_LIMITS = {"requests": REQUESTS, "nano_usd": round(USD * NANO), "nano_wh": round(WH * NANO)}


def add_thrifty(world: "World", rng: random.Random, number: int) -> str:
    """Expect a request of the tenant with a budget, and return its id."""
    fields: dict[str, Any] = {"tenant": THRIFTY, "task": rng.choice(list(DEADLINES_S))}
    world.workload.add(rng, f"thrifty-{number}", fields, POOLS)
    return f"thrifty-{number}"


def check_budgets(after: Aftermath) -> Iterator[str]:
    """The books are the sums of the evidence, and at no time above their limits."""
    steps = [
        decode(Evidence, record.value or b"") for record in after.records(after.catalogue.evidence)
    ]
    yield from _sums(steps, _newest(after))
    yield from _limits(steps, after)
    yield from _tries(steps)
    for step in steps:
        if step.reason == "budget" and step.tenant != THRIFTY:
            yield f"{step.request_id}: of {step.tenant}, which has no budget"


def _newest(after: Aftermath) -> dict[Account, BudgetState | None]:
    newest: dict[bytes | None, Record] = {}
    accounts: dict[bytes | None, Account] = {}
    for record in after.records(after.catalogue.budgets):
        newest[record.key] = record
        if record.value is not None:
            accounts[record.key] = decode(BudgetState, record.value).account
    return {
        accounts[key]: None if record.value is None else decode(BudgetState, record.value)
        for key, record in newest.items()
    }


def _sums(steps: list[Evidence], newest: dict[Account, BudgetState | None]) -> Iterator[str]:
    kept: dict[Account, Amounts] = defaultdict(Amounts)
    used: dict[Account, Amounts] = defaultdict(Amounts)
    for step in steps:
        if step.reserved is not None:
            for account in step.reserved.accounts:
                kept[account] = kept[account].plus(step.reserved.amounts)
        if step.settled is not None:
            for account in step.settled.reserved.accounts:
                kept[account] = kept[account].minus(step.settled.reserved.amounts)
                used[account] = used[account].plus(step.settled.used)
    for account in kept.keys() | newest.keys():
        state = newest.get(account)
        told = (Amounts(), None) if state is None else (state.reserved, state.used)
        found = (kept[account], None if state is None else used[account])
        if told != found:
            yield f"the books of {account} have {told}, the evidence {found}"


def _limits(steps: list[Evidence], after: Aftermath) -> Iterator[str]:
    over_nano, accepted = _beyond_reserved(steps), Counter[Account]()
    for step in steps:
        accepted.update(() if step.reserved is None else step.reserved.accounts)
    for account, count in accepted.items():
        if count > REQUESTS:
            yield f"{account}: {count} requests were accepted, more than its budget"
    for record in after.records(after.catalogue.budgets):
        if record.value is None:
            continue
        state = decode(BudgetState, record.value)
        taken = state.reserved.plus(state.used)
        if taken.requests > REQUESTS:
            yield f"{state.account}: {taken.requests} requests, more than its budget"
        for unit in ("nano_usd", "nano_wh"):
            if getattr(taken, unit) > _LIMITS[unit] + over_nano[state.account, unit]:
                yield f"{state.account}: {getattr(taken, unit)} {unit}, more than its budget"


def _beyond_reserved(steps: list[Evidence]) -> Counter[tuple[Account, str]]:
    """Return what requests used more than was kept for them, by account and unit."""
    over_nano = Counter[tuple[Account, str]]()
    for step in steps:
        if step.settled is not None:
            more = step.settled.used.minus(step.settled.reserved.amounts)
            for account in step.settled.reserved.accounts:
                over_nano[account, "nano_usd"] += max(0, more.nano_usd)
                over_nano[account, "nano_wh"] += max(0, more.nano_wh)
    return over_nano


def _tries(steps: list[Evidence]) -> Iterator[str]:
    """What a request settles is what all of its steps cost."""
    nano: dict[str, int] = defaultdict(int)
    nano_wh: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    for step in steps:
        if step.spent is not None:
            nano[step.request_id] += step.spent.nano_usd
            nano_wh[step.request_id] += step.spent.nano_wh
            tokens[step.request_id] += step.spent.tokens
        if step.got is not None and step.usage is not None:
            nano[step.request_id] += round(step.got.cost_usd * NANO)
            nano_wh[step.request_id] += round((step.energy_wh or 0.0) * NANO)
            tokens[step.request_id] += step.usage.input_tokens + step.usage.output_tokens
    settled: dict[str, Amounts] = defaultdict(Amounts)
    for step in steps:
        if step.settled is not None:
            settled[step.request_id] = settled[step.request_id].plus(step.settled.used)
    for name, used in settled.items():
        cost = (nano[name], nano_wh[name], tokens[name])
        if (used.nano_usd, used.nano_wh, used.tokens) != cost:
            yield f"{name}: settled {used}, its steps took {cost} of dollars, energy and tokens"


class _BooksInMemory(Accounts):
    async def restore(self, partition: Partition, log: Log) -> None:
        await super().restore(partition, log)
        self._books[partition.number].__init__()  # type: ignore[misc]


class KeepsBooksInMemory(Router):
    """Reads no books back, so that a successor begins with full budgets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._accounts = _BooksInMemory(self._catalogue)


class WritesNoBooks(Router):
    """Commits requests without what was kept for them."""

    async def work(self, partition: Partition, records: Any) -> Any:
        plan = await super().work(partition, records)
        if plan is not None and partition.topic == self._catalogue.accounts:
            budgets = self._catalogue.budgets
            for effect in plan.effects:
                effect.records = [each for each in effect.records if each.topic != budgets]
        return plan


class ForgetsToSettle(Worker):
    """Ends work that failed, and leaves open what was kept for it."""

    async def _execute(self, task: Any) -> Effect:
        effect = await super()._execute(task)
        accounts = self._evidence_writer.catalogue.accounts
        if not any(each.topic.endswith(".reroutes") for each in effect.records):
            effect.records = [each for each in effect.records if each.topic != accounts]
        return effect
