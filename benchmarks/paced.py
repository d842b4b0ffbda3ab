"""How many requests a pool serves in time whose prompts wait until they are due, or replies flow.

    python -m benchmarks.paced workload-open.csv.gz --pool silicon-us --replicas 10
    python -m benchmarks.paced workload-open.csv.gz --pool silicon-us --replicas 12 --at-once

The pool's replicas are the modelled ones, and get all requests that stream and whose model they
have; batches, and what other pools serve, are left out. A prompt waits before the pool, that which
is due first ahead, until a replica has computed prompts for less than a share of the last second,
or until it is nearly due: a prompt that is computed keeps all replies of its replica waiting. With
``--at-once`` each goes to the replica with the least to do when it comes. Output lengths are not
looked at.
"""

import argparse
import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from policies import Options, compile_options
from policies.backtest.workload import compress, profiles_of
from policies.hardware.accelerator import Accelerator, Completion, FirstToken, Job, VariantLimits
from shunter.backtest.bound_iterations import TokenTimes
from shunter.backtest.demand import Demand, able
from shunter.backtest.files import read_trace
from streams.config.declarations import load_fleet, load_policy

TICK_S = 0.02
# A prompt that is due so soon waits no longer.
SOON_S = 0.35
# Prompts that a replica has before it, in seconds of its time.
AHEAD_S = 0.1
# What a reply under way weighs beside prompts, in seconds.
REPLY_S = 0.003


@dataclass
class PacedReplica:
    """A replica, what it has before it, and the prompts that it got within the last second."""

    device: Accelerator
    ahead_s: float = 0.0
    replies: int = 0
    lately_s: float = 0.0
    lately: deque[tuple[float, float]] = field(default_factory=deque)

    @property
    def load_s(self) -> float:
        """By which replicas are compared."""
        return max(0.0, self.ahead_s) + 0.5 * self.lately_s + REPLY_S * self.replies


class PacedPool:
    """Replicas that are given prompts; times are those of the trace."""

    def __init__(self, options: Options, pool: str, replicas: int) -> None:
        self._options = {option.model: option for option in options.by_pool[pool]}
        limits = {o.variant: VariantLimits(o.roofline, o.max_batch) for o in options.by_pool[pool]}
        self.replicas = [PacedReplica(Accelerator(limits)) for _ in range(replicas)]
        self.sent: dict[str, tuple[Demand, float]] = {}
        self.first: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def prompt_s(self, demand: Demand) -> float:
        """Return how long its prompt takes, at least."""
        times = TokenTimes.of(self._options[demand.profile.model])
        return times.prompt_compute_s(demand) + times.prompt_beside_s(demand)

    def advance(self, now: float) -> None:
        """Take note of what has happened by then."""
        for each in self.replicas:
            for event in each.device.advance(now):
                if isinstance(event, FirstToken):
                    self.first[event.id] = event.at
                    each.ahead_s -= self.sent[event.id][1]
                elif isinstance(event, Completion):
                    self.ended[event.id] = event.finished_at
                    each.replies -= 1
            while each.lately and each.lately[0][0] < now - 1.0:
                each.lately_s -= each.lately.popleft()[1]

    def send(self, demand: Demand, replica: PacedReplica, now: float) -> None:
        """Give a request to a replica."""
        prompt_s, profile = self.prompt_s(demand), demand.profile
        self.sent[profile.id] = (demand, prompt_s)
        replica.ahead_s += prompt_s
        replica.lately_s += prompt_s
        replica.lately.append((now, prompt_s))
        replica.replies += 1
        variant = self._options[profile.model].variant
        job = Job(profile.id, variant, demand.input_tokens, demand.output_tokens)
        replica.device.submit(job, now)

    def missed(self) -> Counter[str]:
        """Return how many missed, by class and objective."""
        found = Counter[str]()
        for name, (demand, _) in self.sent.items():
            profile, first = demand.profile, self.first[name]
            is_late = first - profile.created_at > (profile.ttft_s or 0.0)
            step_s = (self.ended[name] - first) / max(1, demand.steps)
            is_slow = profile.tpot_s is not None and step_s > profile.tpot_s
            if is_late or is_slow:
                found[f"{profile.task} {'ttft' if is_late else 'tpot'}"] += 1
        return found


def serve(pool: PacedPool, demands: Sequence[Demand], share: float | None) -> None:
    """Give all requests to the pool; without a share each goes when it comes."""
    waiting: list[tuple[float, int, Demand]] = []
    coming = deque(demands)
    now = 0.0
    while coming or waiting:
        while coming and (share is None or coming[0].profile.created_at <= now):
            demand = coming.popleft()
            if share is None:
                now = demand.profile.created_at
                pool.advance(now)
                pool.send(demand, min(pool.replicas, key=lambda each: each.load_s), now)
                continue
            due_s = demand.profile.created_at + (demand.profile.ttft_s or 0.0)
            heapq.heappush(waiting, (due_s - pool.prompt_s(demand), len(coming), demand))
        pool.advance(now)
        while waiting and share is not None:
            best = min(pool.replicas, key=lambda each: each.load_s)
            is_free = best.lately_s < share and best.ahead_s < AHEAD_S
            if not is_free and waiting[0][0] - now >= SOON_S:
                break
            pool.send(heapq.heappop(waiting)[2], best, now)
        now += TICK_S
    pool.advance(float("inf"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how many miss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--pool", default="silicon-us")
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--share", type=float, default=0.6, help="of a second, for prompts")
    parser.add_argument("--at-once", action="store_true")
    given = parser.parse_args(arguments)
    fleet, policy = load_fleet(None), load_policy(None)
    arrivals, options = compress(read_trace(given.trace), given.rate), compile_options(fleet)
    demands = [
        Demand(profile, profile.input_tokens, arrival.output_tokens)
        for profile, arrival in zip(profiles_of(arrivals, fleet, policy), arrivals, strict=True)
        if profile.ttft_s is not None
    ]
    mine = [d for d in demands if any(o.pool == given.pool for o in able(d, options))]
    mine.sort(key=lambda demand: demand.profile.created_at)
    pool = PacedPool(options, given.pool, given.replicas)
    serve(pool, mine, None if given.at_once else given.share)
    missed = pool.missed()
    print(f"{missed.total()} of {len(mine)} miss: {dict(missed.most_common())}")


if __name__ == "__main__":
    main()
