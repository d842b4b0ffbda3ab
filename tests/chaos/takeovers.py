"""The time for which what a dead process had was nobody's, from what the others logged."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

# Beyond the session of one that stays away; from the kill of one that is started again at once.
AWAY_S_MAX, IN_PLACE_S_MAX = 2.0, 3.0
# Local time, as the processes write it.
LINE = re.compile(
    r"^(\S+ [\d:]+),(\d+) INFO streams\.engine\.transactor: took over (\S+) at offset", re.MULTILINE
)


@dataclass(frozen=True)
class Kill:
    """Processes killed together, when (epoch seconds), and whether they were started at once.

    For ``kafka_s`` after it nobody leads a part of what they need, since a broker died with them.
    """

    names: tuple[str, ...]
    at: float
    in_place: bool
    kafka_s: float = 0.0

    def limit_s(self, session_s: float) -> float:
        """Return within what time all that they had should have been taken over."""
        return self.kafka_s + (IN_PLACE_S_MAX if self.in_place else session_s + AWAY_S_MAX)


@dataclass(frozen=True)
class Taken:
    """A partition that a process took over."""

    at: float
    partition: str
    by: str


def read_taken(directory: Path) -> list[Taken]:
    """Return all that was taken over, in order, from the logs of the processes."""
    return sorted(
        (
            Taken(_epoch_s(day, ms), partition, log.stem)
            for log in directory.glob("*.log")
            for day, ms, partition in LINE.findall(log.read_text(errors="replace"))
        ),
        key=lambda taken: taken.at,
    )


def _epoch_s(moment: str, ms: str) -> float:
    return datetime.fromisoformat(moment).astimezone().timestamp() + int(ms) / 1000


def takeover_s(kill: Kill, taken: Iterable[Taken]) -> float | None:
    """Return the time from a kill until the last of what the dead had was taken over.

    That is for ever where some never was, None where they had nothing.
    """
    had: dict[str, str] = {}
    took_s: dict[str, float] = {}
    for each in taken:
        if each.at < kill.at:
            had[each.partition] = each.by
        elif had.get(each.partition) in kill.names:
            took_s.setdefault(each.partition, each.at - kill.at)
    left = [partition for partition, name in had.items() if name in kill.names]
    return max((took_s.get(partition, math.inf) for partition in left), default=None)
