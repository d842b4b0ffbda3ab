"""Baselines: simple ways to choose a pool, under the same hard constraints as every policy.

Each names a pool; the pool chooses the replica, as for any request.
"""

from collections.abc import Callable, Iterator, Sequence

from policies.backtest.route import FixedDelay, Send, Unserved
from policies.config.options import Option, Options
from policies.config.plugins import refused_by
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.fleet_state.view import FleetView
from policies.hardware.roofline import TYPICAL_CONTEXT_TOKENS
from policies.scoring.answers import Answers
from policies.scoring.constraints import has_lane, refusal
from policies.scoring.estimate import estimate
from topics import PoolStatus, Profile
from topics.records.money import Amounts

PREMIUM = "premium_gpu"
# What fixed-delay batching waits for company, unless the class's own window is shorter.
DELAY_S = 5.0
BLIND_SEQUENCES = 16

Choose = Callable[[Profile, Sequence[Option], FleetView], Option]


class Baseline:
    """Chooses by one rule among the options that a request's constraints allow."""

    def __init__(
        self, options: Options, policy: Policy, choose: Choose, *, is_batching: bool = False
    ) -> None:
        self._options = options
        self._policy = policy
        self._choose = choose
        self._view = FleetView(options)
        self._delayed = FixedDelay(DELAY_S, policy.windows.members_max) if is_batching else None

    def hear(self, status: PoolStatus, now: float) -> None:
        """Record a heartbeat."""
        self._view.report(status)

    def arrive(self, profile: Profile, now: float) -> Send | Unserved | None:
        """Send the request to the option that the rule names, or hold it for a batch."""
        able = [o for o in self._options.by_model.get(profile.model, ()) if self._may(profile, o)]
        if not able:
            return Unserved(profile, "no_pool")
        live = [o for o in able if self._view.load(o.pool).workers] or able
        option = self._choose(profile, live, self._view)
        prefill_s = Answers.of(profile).prefill_s(option.roofline)
        self._view.add_sent(option, prefill_s, profile.answers)
        if self._delayed and profile.batchable and "batch" in option.lanes:
            self._delayed.add(profile, option, now)
            return None
        return Send(profile, option, "direct" if "direct" in option.lanes else "batch")

    def settle(self, profile: Profile, used: Amounts) -> None:
        """Let it pass: a rule knows no budgets."""

    def due_at(self) -> float:
        """Return when a batch is due."""
        return self._delayed.due_at() if self._delayed else float("inf")

    def release(self, now: float) -> Iterator[Send]:
        """Yield the members of batches that are due."""
        if self._delayed:
            yield from self._delayed.release(now)

    def _may(self, profile: Profile, option: Option) -> bool:
        floor = self._policy.floor_of(profile)
        if refusal(profile, option, floor) is not None or not has_lane(profile, option):
            return False
        if refused_by(self._policy.rules, profile, option) is not None:
            return False
        limit_usd = profile.max_cost_usd
        if limit_usd is None:
            return True
        standing = self._view.standing(option)
        found = estimate(profile, standing, self._policy.estimates.transport_s)
        return found.cost_usd <= limit_usd


def least_loaded(_: Profile, able: Sequence[Option], view: FleetView) -> Option:
    """Return the option whose pool has the fewest requests per replica."""

    def load(option: Option) -> tuple[float, str, str]:
        running = sum(view.load(option.pool).running_by_variant.values())
        return (running / option.replicas, option.pool, option.variant)

    return min(able, key=load)


def all_premium(profile: Profile, able: Sequence[Option], view: FleetView) -> Option:
    """Return the least loaded premium option; any other only if no premium may serve."""
    premium = [option for option in able if option.kind == PREMIUM]
    return least_loaded(profile, premium or able, view)


class RoundRobin:
    """Chooses each eligible option in turn, by model."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def __call__(self, profile: Profile, able: Sequence[Option], view: FleetView) -> Option:
        """Return the next option."""
        turn = self._turns.get(profile.model, 0)
        self._turns[profile.model] = turn + 1
        return able[turn % len(able)]


def fastest(profile: Profile, able: Sequence[Option], view: FleetView) -> Option:
    """Return the option with the earliest expected finish."""

    def finish(option: Option) -> tuple[float, str, str]:
        found = estimate(profile, view.standing(option), transport_s=0.0)
        return (found.finish_s, option.pool, option.variant)

    return min(able, key=finish)


def cheapest_blind(profile: Profile, able: Sequence[Option], _: FleetView) -> Option:
    """Return the option that is cheapest at a usual batch and meets the SLO when idle.

    Load is ignored; if none meets the SLO, the fastest when idle serves.
    """

    def device_s(option: Option) -> float:
        roofline = option.roofline
        context_tokens = profile.prompt_tokens + profile.output_tokens // 2
        sequences = min(BLIND_SEQUENCES, option.max_batch)
        step_s = roofline.step_s(sequences, sequences * context_tokens) / sequences
        found = Answers.of(profile)
        return found.prefill_s(roofline) + found.count * profile.output_tokens * step_s

    def price(option: Option) -> tuple[float, str, str]:
        tokens = (profile.input_tokens, profile.answers * profile.output_tokens)
        return (option.cost_usd(device_s(option), *tokens), option.pool, option.variant)

    in_time = [option for option in able if _meets_idle(profile, option)]
    if not in_time:
        return fastest(profile, able, _NO_LOAD)
    return min(in_time, key=price)


def _meets_idle(profile: Profile, option: Option) -> bool:
    found = estimate(profile, standing_of(option, PoolLoad(workers=1)), transport_s=0.0)
    if profile.ttft_s is not None and found.ttft_s > profile.ttft_s:
        return False
    usual = min(BLIND_SEQUENCES, option.max_batch)
    step_s = option.roofline.step_s(usual, usual * TYPICAL_CONTEXT_TOKENS)
    return profile.tpot_s is None or step_s <= profile.tpot_s


class StaticRules:
    """Sends each class to a kind of hardware by a table; batches what may wait by a fixed delay."""

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def __call__(self, profile: Profile, able: Sequence[Option], view: FleetView) -> Option:
        """Return the next pool of the kind that the table names, else of any kind."""
        kinds: tuple[str, ...] = (PREMIUM,)
        if profile.operation == "embeddings":
            kinds = ("cpu",)
        elif profile.batchable:
            kinds = ("lpddr_board", "cpu")
        named = [option for option in able if option.kind in kinds]
        return self._turns(profile, named or able, view)


_NO_LOAD = FleetView(Options("", {}, {}, frozenset()))

BASELINES: dict[str, Callable[[Options, Policy], Baseline]] = {
    "all_premium": lambda options, policy: Baseline(options, policy, all_premium),
    "round_robin": lambda options, policy: Baseline(options, policy, RoundRobin()),
    "least_loaded": lambda options, policy: Baseline(options, policy, least_loaded),
    "lowest_latency": lambda options, policy: Baseline(options, policy, fastest),
    "cheapest_blind": lambda options, policy: Baseline(options, policy, cheapest_blind),
    "static_rules": lambda options, policy: Baseline(
        options, policy, StaticRules(), is_batching=True
    ),
}
