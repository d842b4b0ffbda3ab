"""An independent judge of bindings and budgets: reads records as JSON, and shares no code with
Shunter. What it knows is fleet and policy as dictionaries, and docs/evidence.md.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Account = tuple[str, str, float, int]
UNITS = ("requests", "tokens", "nano_usd", "nano_wh")
ENDS = {"executed", "failed", "expired", "rejected", "cancelled"}


@dataclass
class Judge:
    """What was found. ``amiss`` has one line for each thing that is wrong."""

    fleet: Mapping[str, Any]
    policy: Mapping[str, Any]
    amiss: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def placed(self, pool: str, headers: Iterable[tuple[str, bytes]], value: bytes) -> None:
        """Judge a record of a lane: the pool is one that its tenant may use."""
        request = json.loads(value)
        placement = json.loads(dict(headers)["shunter-placement"])
        self.counts["sent to pools"] += 1
        self._within(request["id"], request.get("tenant", "default"), pool, placement)

    def _within(self, name: str, tenant: str, pool: str, place: Mapping[str, Any]) -> None:
        bound = self.policy["tenants"].get(tenant, {}).get("bound", {})
        declared = self.fleet["pools"][pool]
        precisions = {each["precision"] for each in declared["serves"]}
        if place["pool"] != pool or place["region"] != declared["region"]:
            self.amiss.append(f"{name}: sent to {pool}, and says {place}")
        if place["precision"] not in precisions:
            self.amiss.append(f"{name}: {place['precision']} is no precision of {pool}")
        allowed = {"pools": pool, "regions": declared["region"], "precisions": place["precision"]}
        for kind, used in allowed.items():
            if bound.get(kind) is not None and used not in bound[kind]:
                self.amiss.append(f"{name}: {tenant} is bound to {kind} {bound[kind]}, not {used}")

    def judge(
        self,
        evidence: Iterable[Mapping[str, Any]],
        results: Iterable[Mapping[str, Any]],
        budgets: Iterable[tuple[bytes, bytes | None]],
    ) -> None:
        """Judge the books by sums over the evidence.

        Args:
            evidence: all steps.
            results: all results.
            budgets: the records of the budgets topic, oldest first.
        """
        steps = list(evidence)
        self._results(steps, list(results))
        self._tries(steps)
        self._books(steps, list(budgets))

    def _results(self, steps: list[Mapping[str, Any]], results: list[Mapping[str, Any]]) -> None:
        times = Counter(result["id"] for result in results)
        self.amiss += [f"{name}: {count} results" for name, count in times.items() if count != 1]
        self.counts["results"] = len(results)
        tenants = {step["request_id"]: step.get("tenant") for step in steps}
        for result in results:
            place, tenant = result.get("placement"), tenants.get(result["id"])
            if place and tenant:
                self._within(result["id"], tenant, place["pool"], place)
            if result["status"] == "rejected" and result["error"]["code"] == "budget":
                self.counts["beyond a budget"] += 1
                if tenant is None or not (self._limits(tenant) or self._of_classes()):
                    self.amiss.append(f"{result['id']}: {tenant} has no budget")
                if result["error"]["retry_at"] is None:
                    self.amiss.append(f"{result['id']}: no time to come back")

    def _limits(self, tenant: str) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self.policy["tenants"].get(tenant, {}).get("budgets", [])
        return found

    def _of_classes(self) -> dict[str, list[Mapping[str, Any]]]:
        declared = self.policy.get("classes", {}).items()
        return {name: each["budgets"] for name, each in declared if each.get("budgets")}

    def _of(self, account: Account) -> list[Mapping[str, Any]]:
        """The limits of an account."""
        rule, owner, window_s, _ = account
        place, _, name = rule.partition(".")
        found = self._of_classes().get(name, []) if place == "classes" else self._limits(owner)
        return [budget for budget in found if budget["window_s"] == window_s]

    def _tries(self, steps: list[Mapping[str, Any]]) -> None:
        """What is settled for a request is what its steps cost, and that is its tokens' price."""
        nano: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        nano_wh: Counter[str] = Counter()
        settled: dict[str, Mapping[str, Any]] = {}
        for step in steps:
            name, spent, got = step["request_id"], step.get("spent"), step.get("got")
            if spent:
                self.counts["tries that cost something"] += 1
                nano[name] += spent["nano_usd"]
                nano_wh[name] += spent["nano_wh"]
                tokens[name] += spent["input_tokens"] + spent["output_tokens"]
            if got:
                usage = step["usage"]
                nano[name] += round(got["cost_usd"] * 1e9)
                nano_wh[name] += round((step.get("energy_wh") or 0.0) * 1e9)
                tokens[name] += usage["input_tokens"] + usage["output_tokens"]
                self._priced(step)
            if step.get("settled"):
                if name in settled:
                    self.amiss.append(f"{name}: settled twice")
                settled[name] = step["settled"]["used"]
                accounts = _accounts(step["settled"]["reserved"])
                if all(limit.get("wh") is None for a in accounts for limit in self._of(a)):
                    nano_wh[name] = 0
                if step["step"] not in ENDS:
                    self.amiss.append(f"{name}: settled by {step['step']}")
        for name, used in settled.items():
            cost = (1, tokens[name], nano[name], nano_wh[name])
            if tuple(used[unit] for unit in UNITS) != cost:
                self.amiss.append(f"{name}: settled {used}, cost {cost}")

    def _priced(self, step: Mapping[str, Any]) -> None:
        price = self.fleet["pools"][step["placement"]["pool"]].get("token_price")
        if price is None:
            return
        each, usage = price["usd_per_million"], step["usage"]
        cached = usage.get("cached_tokens", 0)
        usd = (usage["input_tokens"] - cached) * each["input"] + usage["output_tokens"] * each[
            "output"
        ]
        usd += cached * each.get("cached_input", each["input"])
        self.counts["paid by tokens"] += 1
        if abs(step["got"]["cost_usd"] - usd / 1e6) > 1e-9:
            self.amiss.append(f"{step['request_id']}: {step['got']['cost_usd']}, not {usd / 1e6}")

    def _books(
        self, steps: list[Mapping[str, Any]], budgets: list[tuple[bytes, bytes | None]]
    ) -> None:
        kept: dict[Account, Counter[str]] = defaultdict(Counter)
        used: dict[Account, Counter[str]] = defaultdict(Counter)
        over: dict[Account, Counter[str]] = defaultdict(Counter)
        accepted: Counter[Account] = Counter()
        for step in steps:
            for account in _accounts(step.get("reserved")):
                accepted[account] += 1
                kept[account].update(step["reserved"]["amounts"])
            if step.get("settled"):
                amounts, done = step["settled"]["reserved"]["amounts"], step["settled"]["used"]
                for account in _accounts(step["settled"]["reserved"]):
                    kept[account].subtract(amounts)
                    used[account].update(done)
                    over[account].update({u: max(0, done[u] - amounts[u]) for u in UNITS})
        self.counts["windows of budgets"] = len(accepted)
        self.counts["accepted within budgets"] = accepted.total()
        newest: dict[Account, Mapping[str, Any] | None] = {}
        names: dict[bytes, Account] = {}
        for key, value in budgets:
            if value is None:
                newest[names[key]] = None
                continue
            state = json.loads(value)
            account = _account(state["account"])
            names[key], newest[account] = account, state
            self._limit(account, state, over[account])
        self.counts["states of accounts"] = len(budgets)
        for account in accepted.keys() | newest.keys():
            self._equal(account, newest.get(account), kept[account], used[account])
        self.counts["nano-dollars settled"] = sum(each["nano_usd"] for each in used.values())

    def _limit(self, account: Account, state: Mapping[str, Any], over: Mapping[str, int]) -> None:
        for budget in self._of(account):
            usd, wh = budget.get("usd"), budget.get("wh")
            limits = {
                "requests": budget.get("requests"),
                "tokens": budget.get("tokens"),
                "nano_usd": None if usd is None else round(usd * 1e9),
                "nano_wh": None if wh is None else round(wh * 1e9),
            }
            for unit, limit in limits.items():
                taken = state["reserved"][unit] + state["used"][unit]
                if limit is not None and taken > limit + over.get(unit, 0):
                    self.amiss.append(f"{account}: {taken} {unit}, of {limit} and {over}")

    def _equal(
        self,
        account: Account,
        state: Mapping[str, Any] | None,
        kept: Mapping[str, int],
        used: Mapping[str, int],
    ) -> None:
        for unit in UNITS:
            if kept.get(unit, 0):
                self.amiss.append(f"{account}: {kept[unit]} {unit} are kept for what has ended")
            if state is None:
                continue
            told = (state["reserved"][unit], state["used"][unit])
            if told != (kept.get(unit, 0), used.get(unit, 0)):
                self.amiss.append(f"{account}: {told} {unit}, the evidence has {kept}, {used}")


def _account(told: Mapping[str, Any]) -> Account:
    return told["rule"], told["owner"], told["window_s"], told["number"]


def _accounts(reserved: Mapping[str, Any] | None) -> list[Account]:
    return [_account(each) for each in reserved["accounts"]] if reserved else []
