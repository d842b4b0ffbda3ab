"""A trace of agents' steps, generated: long prompts, most of which an earlier step had.

    python -m benchmarks.agent_trace agents.csv [--steps 20000] [--per-hour 50000] [--seed 1]

No open trace that is in reach has them so. A session begins with a prompt of some 35,000 tokens,
goes on for some 25 steps, each by what a tool said and the last reply longer, and ends before
120,000. Between two steps lie 2 s and what a tool takes, 8 s at the median. Lengths and times are
log-normal; sessions begin at any time of the trace.
"""

import argparse
import random
from math import log
from pathlib import Path

from benchmarks.session_traces import Turn, write_trace

TOKENS_MAX = 120_000


def rows_of(steps: int, per_hour: float, seed: int) -> list[Turn]:
    """Return the trace's rows, the same for one seed."""
    draw = random.Random(seed)

    def about(median: float, spread: float) -> float:
        return draw.lognormvariate(log(median), spread)

    rows: list[Turn] = []
    session = 0
    while len(rows) < steps:
        at_s = draw.random() * 3600.0 * steps / per_hour
        prompt, prefix = max(2000, round(about(35_000, 0.6))), 0
        for _ in range(max(2, round(about(18, 0.8)))):
            if prompt > TOKENS_MAX:
                break
            reply = max(1, round(about(60, 0.9)))
            rows.append(
                {
                    "arrival_s": round(at_s, 3),
                    "task": "agent_step",
                    "model": "gpt-oss-120b",
                    "input_tokens": prompt,
                    "output_tokens": reply,
                    "prefix_tokens": prefix,
                    "session": f"agent-{session}",
                }
            )
            prefix = prompt + reply
            prompt = prefix + max(20, round(about(1500, 1.3)))
            at_s += 2.0 + about(8.0, 1.0)
        session += 1
    return sorted(rows, key=lambda row: row["arrival_s"])


def main() -> None:
    """Write the trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--per-hour", type=float, default=50_000.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows = rows_of(given.steps, given.per_hour, given.seed)
    print(write_trace(rows, given.target))


if __name__ == "__main__":
    main()
