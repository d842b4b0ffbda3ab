"""A trace of tool agents beside chats, generated: many short calls that begin alike.

    python -m benchmarks.tool_trace tools.csv [--requests 20000] [--seed 1] [--tools-only]

As in Mooncake's traces of tools and agents, of whose rows a few hundred were read: 45 % of the
requests begin with the same 6,144 tokens and answer in 3 to 60, 14 % with the same 2,560 and answer
in 20, and the others are chats, two in five of them a later turn. They come in bursts of about 20,
each 3.05 s. All calls of an agent are one session here, as a client's `prompt_cache_key` says it.
"""

import argparse
import random
from math import log
from pathlib import Path

from benchmarks.session_traces import Turn, write_trace

BURST_S, BURST = 3.05, (20.0, 5.0)
CHAT_TOKENS_MAX = 100_000
# Turns that the last chats go on with.
RECENT = 400


class Drawn:
    """Draws turns; chats keep what they have had."""

    def __init__(self, seed: int) -> None:
        """Begin without chats."""
        self._draw = random.Random(seed)
        self._chats: list[tuple[str, int]] = []

    def burst(self, at_s: float) -> list[Turn]:
        """Return the requests of one moment."""
        return [self._turn(at_s) for _ in range(max(1, round(self._draw.gauss(*BURST))))]

    def _about(self, median: float, spread: float) -> int:
        return max(1, round(self._draw.lognormvariate(log(median), spread)))

    def _turn(self, at_s: float) -> Turn:
        kind = self._draw.random()
        if kind < 0.45:
            said = 3 if self._draw.random() < 0.5 else self._about(28, 0.3)
            return self._call(at_s, "tool-a", 6144, min(4000, self._about(450, 1.2)), said)
        if kind < 0.59:
            return self._call(at_s, "tool-b", 2560, self._about(560, 0.15), self._about(20, 0.2))
        if self._chats and self._draw.random() < 0.4:
            number = self._draw.randrange(max(0, len(self._chats) - RECENT), len(self._chats))
            session, had = self._chats[number]
            if had < CHAT_TOKENS_MAX:
                turn = self._call(at_s, session, had, self._about(600, 1.2), self._about(300, 0.9))
                self._chats[number] = (session, turn["input_tokens"] + turn["output_tokens"])
                return turn
        session = f"chat-{len(self._chats)}"
        asked = min(CHAT_TOKENS_MAX, 512 + self._about(4000, 1.2))
        turn = self._call(at_s, session, 0, asked, self._about(300, 0.9))
        self._chats.append((session, turn["input_tokens"] + turn["output_tokens"]))
        return turn

    def _call(self, at_s: float, session: str, had: int, new: int, said: int) -> Turn:
        return {
            "arrival_s": round(at_s, 3),
            "task": "agent_step",
            "model": "gpt-oss-120b",
            "input_tokens": had + new,
            "output_tokens": said,
            "prefix_tokens": had,
            "session": session,
        }


def turns_of(requests: int, seed: int) -> list[Turn]:
    """Return the first requests of a trace, the same for one seed."""
    drawn = Drawn(seed)
    turns: list[Turn] = []
    moments = 0
    while len(turns) < requests:
        turns += drawn.burst(BURST_S * moments)
        moments += 1
    return turns[:requests]


def main() -> None:
    """Write the trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tools-only", action="store_true", help="leave the chats out")
    given = parser.parse_args()
    turns = turns_of(given.requests, given.seed)
    kept = [t for t in turns if t["session"].startswith("tool") or not given.tools_only]
    print(write_trace(kept, given.target))


if __name__ == "__main__":
    main()
