"""Traces whose requests have sessions, and prefixes that earlier turns of them had."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict


class Turn(TypedDict):
    """A request of a session, with the columns of `shunter policy backtest --trace`.

    `prefix_tokens` are those of the prompt that an earlier turn of the session had.
    """

    arrival_s: float
    task: str
    model: str
    input_tokens: int
    output_tokens: int
    prefix_tokens: int
    session: str


def write_trace(turns: Sequence[Turn], target: Path) -> str:
    """Write a trace; return what it holds, in words."""
    with target.open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[Any] = csv.DictWriter(file, fieldnames=list(Turn.__annotations__))
        writer.writeheader()
        writer.writerows(turns)
    sessions = len({turn["session"] for turn in turns})
    prompts = sum(turn["input_tokens"] for turn in turns)
    before = sum(turn["prefix_tokens"] for turn in turns)
    return f"{len(turns)} requests of {sessions} sessions; {before} of {prompts} tokens had before"
