"""Effects of the hardware model's error on a backtest: runs by constants drawn from it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import Any

from policies import compile_options
from policies.backtest.fault_model import Reality
from policies.config.serving import Times
from policies.hardware.constants import FACTOR_MAX
from shunter.backtest.parallel_runs import scored_beside
from shunter.backtest.suite import PlannedRun, Scored, Setting, plans

# The runs that conclusions compare.
NAMES = ("shunter", "shunter_premium", "all_premium", "cheapest_blind")


@dataclass(frozen=True, slots=True)
class Drawn:
    """The figures of one draw, by run."""

    reality: Reality
    scored: list[Scored]

    def dollars(self, name: str) -> float | None:
        """Return what a run cost; None if it wasn't made."""
        found = [each.scores["cost_usd"] for each in self.scored if each.name == name]
        return float(found[0]) if found else None


def realities(setting: Setting, count: int) -> Iterator[Reality]:
    """Yield realities whose devices take what their declared error allows, untold.

    Each kind of device has two factors: of what prompts take, and of what decoding takes. Both are
    log-normal with the device's standard deviation, or the policy's `estimates.spread` where the
    device declares none; all pools of a device share them.
    """
    options, least = compile_options(setting.fleet), setting.policy.estimates.spread
    errors = {each[0].device: each[0].error or least for each in options.by_pool.values()}
    drawn = random.Random(setting.reality.seed)  # noqa: S311 - a model, not a secret
    for _ in range(count):
        times = {device: _times(drawn, errors[device]) for device in sorted(errors)}
        by_pool = {pool: times[each[0].device] for pool, each in options.by_pool.items()}
        yield setting.reality.model_copy(update={"times": by_pool})


def _times(drawn: random.Random, error: float) -> Times:
    prompts, decodes = (
        min(FACTOR_MAX, max(1 / FACTOR_MAX, drawn.lognormvariate(0.0, error))) for _ in range(2)
    )
    return Times(compute=prompts, prompt=prompts, first_token=prompts, memory=decodes, step=decodes)


def draws(setting: Setting, count: int) -> Iterator[Drawn]:
    """Yield the runs of each draw. Raises UserError where the trace names what isn't there."""
    for reality in realities(setting, count):
        case = replace(setting, reality=reality)
        planned: list[PlannedRun] = [
            each for each in plans(case, with_baselines=True) if each.name in NAMES
        ]
        yield Drawn(reality, [scored for scored, _ in scored_beside(planned, ours=1)])


def summary(found: Sequence[Drawn]) -> dict[str, Any]:
    """Return cost, attainment and the saving by run: 10 %, median and 90 % of the draws.

    ``over`` is what Shunter costs over the run.
    """
    told: dict[str, Any] = {}
    for name in (each.name for each in found[0].scored):
        runs = [each for drawn in found for each in drawn.scored if each.name == name]
        own = [drawn.dollars("shunter") or 0.0 for drawn in found]
        other = [each.scores["cost_usd"] for each in runs]
        over = [a / b for a, b in zip(own, other, strict=True) if b]
        told[name] = {
            "cost_usd": _spread(other),
            "slo_attainment": _spread([each.scores["slo_attainment"] for each in runs]),
            "over": _spread(over),
        }
    return told


def _spread(values: Sequence[float]) -> list[float]:
    """Return 10 %, median and 90 %; nothing of no values."""
    if len(values) < 2:
        return [*values] * 3
    tenths = quantiles(values, n=10, method="inclusive")
    return [tenths[0], tenths[4], tenths[8]]
