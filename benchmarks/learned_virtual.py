"""What of a promise's error is left once a pool that is not as declared has been learned.

    python -m benchmarks.learned_virtual [--requests 1500] [--rates 0.6,1,1.5,2.5]

The requests of `benchmarks.learned_live` in virtual time, on one device that takes 3 times as long
as declared for prompts and first tokens, and 1.5 times for decoding. From the 500th on, promised
TTFT and TPOT are held against what came, at the median of abs(promised / got - 1). Beside them what
others could have promised of TPOT, who know the device, and how many sequences decode as a request
comes: at the best factor in hindsight; with the prompts to expect beside the reply, at the rate of
all, by their mean and by their median; and with those that really come.

A second table has what a user sees of all of them: promised over got, of the medians and of the
means, and the share of requests that took at most 1.15 times what was promised.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, median

from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import Replay
from policies.backtest.workload import Arrival, profiles_of
from policies.config.options import Option, compile_options
from policies.config.serving import Times
from policies.hardware.constants import corrected
from policies.hardware.roofline import Roofline
from shunter.backtest.suite import Setting, shunter
from streams.config.declarations import load_fleet, load_policy

POOL, MODEL, LEARNED = "premium-eu", "llama-3.1-8b", 500
NEAR = 1.15
TIMES = Times(compute=3.0, prompt=3.0, first_token=3.0, memory=1.5, step=1.5)


@dataclass(frozen=True, slots=True)
class Run:
    """Outcomes, sorted by their coming, and what the device really takes."""

    outcomes: list[ReplayOutcome]
    option: Option
    device: Roofline


def run(requests: int, rate: float) -> Run:
    """Return what came of requests at random times, at so many a second."""
    draw, at, arrivals = random.Random(5), 0.0, []
    for number in range(requests):
        at += draw.expovariate(rate)
        reply, prompt = draw.randint(20, 300), draw.randint(200, 4000)
        arrivals.append(Arrival(number, at, "chat", MODEL, prompt, reply, None))
    declared, policy = load_fleet(None), load_policy(None)
    pool = declared.pools[POOL]
    serves = (pool.serves[0].model_copy(update={"tensor_parallel": 1}),)
    pool = pool.model_copy(update={"count": 1, "serves": serves, "lanes": ("direct",)})
    fleet = declared.model_copy(update={"pools": {POOL: pool}})
    reality, options = Reality(times={POOL: TIMES}), compile_options(fleet)
    route = shunter(Setting(tuple(arrivals), fleet, policy, reality), options)
    replay = Replay(route, options, policy, reality, random.Random(0).random)
    lengths = [arrival.output_tokens for arrival in arrivals]
    found = replay.run(profiles_of(arrivals, fleet, policy), lengths).outcomes
    option = options.by_pool[POOL][0]
    return Run(found, option, corrected(option.roofline, TIMES.factors))


def expected(
    alone: Sequence[float], learned: Sequence[ReplayOutcome], prompt_s: float, rate: float
) -> tuple[list[float], list[float]]:
    """Return each TPOT with the prompts to expect at a rate: by their mean, and by their median.

    Prompts take ``rate * prompt_s`` of all time, so that a reply takes that much longer. How many
    come beside it is Poisson distributed, whose median is at most ln 2 below its mean.
    """
    longer = 1.0 / (1.0 - rate * prompt_s)
    mean = [longer * each for each in alone]
    usual = []
    for o, own_s, mean_s in zip(learned, alone, mean, strict=True):
        steps = o.output_tokens - 1
        come = max(0.0, rate * steps * mean_s - log(2.0))
        usual.append(own_s + come * prompt_s / steps)
    return mean, usual


def error(promised: Sequence[float], got: Sequence[float]) -> float:
    """Return the median error of promises."""
    return median(abs(p / g - 1.0) for p, g in zip(promised, got, strict=True))


def learned_by(found: Run) -> list[ReplayOutcome]:
    """Return the requests whose promises are held against what came."""
    done = [o for o in found.outcomes if o.status == "completed" and o.promised]
    return [o for o in done if o.row >= LEARNED and o.tpot_s]


def seen(promised: Sequence[float], got: Sequence[float]) -> list[str]:
    """Return the ratios of medians and of means, and the share that kept near its promise."""
    ratios = median(promised) / median(got), fmean(promised) / fmean(got)
    kept = fmean(g <= NEAR * p for p, g in zip(promised, got, strict=True))
    return [*(f"{each:.2f}" for each in ratios), f"{100 * kept:.1f} %"]


def line_of_all(found: Run) -> str:
    """Return a row of the table of what a user sees."""
    learned = learned_by(found)
    ttft = seen([o.promised.ttft_s for o in learned], [o.ttft_s for o in learned])  # type: ignore[union-attr, misc]
    tpot = seen([o.promised.tpot_s for o in learned], [o.tpot_s for o in learned])  # type: ignore[union-attr, misc]
    return " | ".join((*ttft, *tpot))


def line(found: Run, rate: float) -> str:
    """Return a row of the table."""
    done = [o for o in found.outcomes if o.status == "completed" and o.promised]
    decodes = [(o.first_token_s or 0.0, o.finished_s or 0.0) for o in done]
    alone, later, share = [], [], [0.0, 0.0]
    learned = learned_by(found)
    for o in learned:
        begin, end = o.first_token_s or 0.0, o.finished_s or 0.0
        beside = sum(1 for a, b in decodes if a <= begin < b)
        shared_s = sum(max(0.0, min(b, end) - max(a, begin)) for a, b in decodes)
        others_s = sum(
            found.device.prefill_s(other.input_tokens)
            for other in done
            if other is not o and begin < (other.first_token_s or 0.0) <= end
        )
        context = o.input_tokens + o.output_tokens // 2
        alone.append(found.device.step_s(beside, beside * context))
        mean = shared_s / (end - begin)
        own_s = found.device.step_s(mean, mean * context)
        later.append(own_s + others_s / (o.output_tokens - 1))
        share = [share[0] + others_s, share[1] + end - begin]
    got = [o.tpot_s or 0.0 for o in learned]
    best = min(error([f / 100 * each for each in alone], got) for f in range(80, 180))
    ttft = error([o.promised.ttft_s for o in learned], [o.ttft_s for o in learned])  # type: ignore[union-attr, misc]
    tpot = error([o.promised.tpot_s for o in learned], got)  # type: ignore[union-attr, misc]
    prompt_s = fmean(found.device.prefill_s(o.input_tokens) for o in done)
    to_come = [error(each, got) for each in expected(alone, learned, prompt_s, rate)]
    figures = (share[0] / share[1], ttft, tpot, best, *to_come, error(later, got))
    return " | ".join(f"{100 * each:.1f} %" for each in figures)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rates", default="0.6,1,1.5,2.5", help="requests a second, by commas")
    asked = parser.parse_args()
    print("| rate | prompts' share | TTFT | TPOT | best factor | mean | median | afterwards |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for rate in map(float, asked.rates.split(",")):
        found = run(asked.requests, rate)
        print(f"| {rate:g} | {line(found, rate)} |", flush=True)
        rows.append(f"| {rate:g} | {line_of_all(found)} |")
    print("\n| rate | TTFT medians | means | within | TPOT medians | means | within |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
