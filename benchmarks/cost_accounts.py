"""Where the dollars of a backtest go, by pool, variant and cause.

    python -m benchmarks.cost_accounts workload-open.csv.gz --rate 10 --fleet-scale 10

The packaged policy's run of a trace, each iteration of each replica split into

- prompts: their arithmetic, and what prompts take beside it;
- beside prompts: the rest of the iterations that have one, in which others decode;
- full steps: what the tokens of all other iterations cost where each step is full, to its places
  or its memory;
- few: what they cost more because so many sequences shared a step, until the last arrival;
- drain: the same after it, when nobody comes who could share them.

The sum is what the run costs. Below it are the requests that the time after the last arrival is
shared by, the dearest first.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from unittest.mock import patch

from policies import Option, compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.replica_pool import Draw, ModelPool, Try
from policies.backtest.workload import compress
from policies.hardware.accelerator import Accelerator
from policies.hardware.iteration import IterationRun, VariantQueue
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting, run_one, scaled, shunter
from streams.config.declarations import load_fleet, load_policy

PROMPTS, BESIDE, FULL, DRAIN = "prompts", "beside prompts", "full steps", "drain"
# By the most sequences in a step.
FEW = {2: "1 or 2", 16: "3 to 16", 10_000: "17 and more"}
CAUSES = (PROMPTS, BESIDE, FULL, *FEW.values(), DRAIN)
DEAREST = 6

Asked = tuple[str, int, int]
"""Class, row and reply of a request."""

_init, _submit = ModelPool.__init__, ModelPool.submit
_settle = Accelerator._settle  # noqa: SLF001 - what a run of iterations was, nothing else tells


class Accounts:
    """The dollars of one run: by pool, variant and cause, and by request after the last arrival."""

    def __init__(self, last_s: float) -> None:
        """Start with nothing spent on a trace whose last request comes at this time."""
        self.usd: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        self.drained_usd: defaultdict[Asked, float] = defaultdict(float)
        self._last_s = last_s
        self._options: dict[Accelerator, Sequence[Option]] = {}
        self._jobs: Counter[str] = Counter()
        self._asked: dict[tuple[str, str], Asked] = {}

    def opened(
        self, pool: ModelPool, options: Sequence[Option], reality: Reality, draw: Draw
    ) -> None:
        """Open a pool, and note its replicas."""
        _init(pool, options, reality, draw)
        for replica in pool.replicas:
            self._options[replica.accelerator] = options

    def submitted(self, pool: ModelPool, attempt: Try, now: float) -> int | None:
        """Submit a try, and note whose job it is."""
        outcome = attempt.outcome
        # A pool numbers its jobs.
        name = str(self._jobs[pool.name])
        self._jobs[pool.name] += 1
        self._asked[pool.name, name] = outcome.profile.task, outcome.row, outcome.output_tokens
        return _submit(pool, attempt, now)

    def settled(self, accelerator: Accelerator, run: IterationRun) -> None:
        """Settle a run of iterations, and book it."""
        options = self._options[accelerator]
        if run.chunks:
            self._book_mixed(run, options[run.lanes[0].index])
        else:
            for position, lane in enumerate(run.lanes):
                steps = run.steps_of(position, run.iterations)
                if steps:
                    self._book(lane, steps, options[lane.index], run.started_at)
        if run.started_at > self._last_s:
            self._share(run, options[0])
        _settle(accelerator, run)

    def _book_mixed(self, run: IterationRun, option: Option) -> None:
        roofline, prompt_s = option.roofline, 0.0
        for state, tokens in run.chunks:
            pairs = tokens * (0.5 * tokens + state.computed_tokens)
            prompt_s += tokens * (roofline.token_s + roofline.traffic_token_s)
            prompt_s += pairs * roofline.pair_s + roofline.prompt_overhead_s
        self._add(option, PROMPTS, prompt_s)
        self._add(option, BESIDE, run.elapsed_s - prompt_s)

    def _book(self, lane: VariantQueue, steps: int, option: Option, began_at: float) -> None:
        sequences, took_s = len(lane.decoding), lane.decode_s(steps)
        context = lane.context_tokens / sequences + steps / 2
        full_s = steps * sequences * full_step_s(option, context)
        self._add(option, FULL, full_s)
        few = next(name for most, name in FEW.items() if sequences <= most)
        self._add(option, DRAIN if began_at > self._last_s else few, took_s - full_s)

    def _share(self, run: IterationRun, option: Option) -> None:
        decoding = [state for lane in run.lanes for _, _, state in lane.decoding]
        states = [*decoding, *(state for state, _ in run.chunks)]
        for state in states:
            asked = self._asked[option.pool, state.job.id]
            self.drained_usd[asked] += run.elapsed_s * option.usd_per_s / len(states)

    def _add(self, option: Option, cause: str, seconds: float) -> None:
        self.usd[option.pool, option.variant, cause] += seconds * option.usd_per_s


def full_step_s(option: Option, context_tokens: float) -> float:
    """Return what a sequence of this context takes of a step that is full."""
    roofline, sequences = option.roofline, float(option.max_batch)
    if roofline.kv_bytes_per_token:
        sequences = max(1.0, min(sequences, option.kv_capacity_tokens / max(1.0, context_tokens)))
    return roofline.step_s(sequences, sequences * context_tokens) / sequences


def accounts_of(setting: Setting) -> tuple[Accounts, dict[str, float]]:
    """Return the accounts of the packaged policy's run, and its scores."""
    found = Accounts(max(arrival.arrival_s for arrival in setting.arrivals))
    options = compile_options(setting.fleet)

    def init(pool: ModelPool, choices: Sequence[Option], reality: Reality, draw: Draw) -> None:
        found.opened(pool, choices, reality, draw)

    def submit(pool: ModelPool, attempt: Try, now: float) -> int | None:
        return found.submitted(pool, attempt, now)

    def settle(accelerator: Accelerator, run: IterationRun) -> None:
        found.settled(accelerator, run)

    with (
        patch.object(ModelPool, "__init__", init),
        patch.object(ModelPool, "submit", submit),
        patch.object(Accelerator, "_settle", settle),
    ):
        return found, run_one("shunter", setting, options, shunter(setting, options)).scores


def table(accounts: Accounts) -> Iterator[str]:
    """Yield the lines of a table, the dearest place first, and its sums."""
    yield f"| | {' | '.join(CAUSES)} | all |"
    yield "| --- |" + " --: |" * (len(CAUSES) + 1)
    places = {(pool, variant) for pool, variant, _ in accounts.usd}
    rows = [(place, [accounts.usd[*place, cause] for cause in CAUSES]) for place in places]
    for (pool, variant), usd in sorted(rows, key=lambda row: -sum(row[1])):
        yield _line(f"{pool}, {variant}", usd)
    yield _line("all", [sum(each) for each in zip(*(usd for _, usd in rows), strict=True)])


def _line(name: str, usd: Sequence[float]) -> str:
    return f"| {name} | {' | '.join(f'{each:.3f}' for each in (*usd, sum(usd)))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the accounts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--fleet-scale", type=float, default=10.0)
    given = parser.parse_args(arguments)
    fleet = scaled(load_fleet(None), given.fleet_scale)
    arrivals = compress(read_trace(given.trace), given.rate)
    accounts, scores = accounts_of(Setting(arrivals, fleet, load_policy(None), Reality()))
    for line in table(accounts):
        print(line)
    print(f"\n{scores['cost_usd']:.3f} dollars, {scores['slo_attainment']:.2%} attained;", end=" ")
    print(f"{sum(accounts.drained_usd.values()):.3f} after the last arrival, of that")
    for (task, row, tokens), usd in nlargest(DEAREST, accounts.drained_usd.items(), itemgetter(1)):
        print(f"- {usd:.3f} by row {row}, {task}, a reply of {tokens} tokens")


if __name__ == "__main__":
    main()
