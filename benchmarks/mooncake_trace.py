"""A trace of Mooncake as one of Shunter's, with its sessions and prefixes.

    python -m benchmarks.mooncake_trace conversation_trace.jsonl trace.csv [--rows N]
    python -m benchmarks.mooncake_trace conversation_trace.jsonl rest.csv --without-prefixes

The trace (kvcache-ai/Mooncake, ``FAST25-release/traces``) names the blocks of 512 tokens of each
prompt by ``hash_ids``, and no sessions. Here a request goes on with the session of the last one
whose blocks it begins with, all of them but the last one or two; otherwise it begins a session.
Its prefix is what it has in common with that one. What an oracle's placement would find cached is
the sum of these prefixes: blocks that different sessions have in common don't count.

`--without-prefixes` leaves what an earlier turn had out of each prompt. What such a trace costs is
what an oracle's placement costs at least: it finds all of that wherever the turn goes, in endless
memory, and reading it is free.
"""

import argparse
import json
from pathlib import Path

from benchmarks.session_traces import Turn, write_trace

BLOCK_TOKENS = 512
# Of a prompt's blocks, those that the next turn may have otherwise: the last is seldom full.
OPEN_BLOCKS = 2


def rows_of(file: Path, limit: int, task: str, model: str) -> list[Turn]:
    """Return the trace's rows."""
    rows: list[Turn] = []
    # By the chain of its blocks up to its open end: the session and how many tokens it had.
    seen: dict[tuple[int, ...], tuple[str, int]] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in zip(range(limit), lines, strict=False):
            told = json.loads(line)
            blocks, tokens = tuple(told["hash_ids"]), told["input_length"]
            session, prefix = f"s{number}", 0
            for end in range(len(blocks), 1, -1):
                if (found := seen.get(blocks[:end])) is not None:
                    session, prefix = found[0], min(end * BLOCK_TOKENS, tokens)
                    break
            for end in range(max(2, len(blocks) - OPEN_BLOCKS), len(blocks) + 1):
                seen[blocks[:end]] = (session, tokens)
            rows.append(
                {
                    "arrival_s": round(told["timestamp"] / 1000, 3),
                    "task": task,
                    "model": model,
                    "input_tokens": max(1, tokens),
                    "output_tokens": told["output_length"],
                    "prefix_tokens": prefix,
                    "session": session,
                }
            )
    return sorted(rows, key=lambda row: row["arrival_s"])


def without_prefix(row: Turn) -> Turn:
    """Return a row whose prompt is what no earlier turn had; a token at least is computed."""
    rest = max(1, row["input_tokens"] - row["prefix_tokens"])
    return {**row, "input_tokens": rest, "prefix_tokens": 0}


def main() -> None:
    """Write the trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--without-prefixes", action="store_true")
    parser.add_argument("--task", default="agent_step")
    parser.add_argument("--model", default="gpt-oss-120b")
    given = parser.parse_args()
    rows = rows_of(given.source, given.rows, given.task, given.model)
    told = map(without_prefix, rows) if given.without_prefixes else rows
    print(write_trace(list(told), given.target))


if __name__ == "__main__":
    main()
