"""The findings of a verification."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from topics import ChainHead

Kind = Literal[
    "altered",
    "missing",
    "replayed",
    "reordered",
    "gap",
    "fork",
    "broken_link",
    "broken_root",
    "forged",
    "unknown_key",
    "revoked_key",
    "outside_validity",
    "back_dated",
    "truncated",
    "wrong_key",
    "unreadable",
    "false_entry",
    "false_column",
    "stray_file",
    "false_result",
    "ended_twice",
    "unended",
    "constraint",
    # Of a trail against the public log (shunter/public_log/check.py).
    "log_checkpoint",
    "log_altered",
    "log_fork",
    "log_truncated",
    "log_stale",
    "log_order",
    "log_repeats",
    "log_entry",
    "unlogged",
    "unkept",
]

# What a trail can't tell of itself; the public log can (shunter/public_log/audit.py).
TAIL_UNCHECKED = (
    "whether the newest was cut off, but for what the system itself tells, which is in the same"
    " hands (--heads, --log)"
)
REMADE_UNCHECKED = "whether all of it was made anew, or later, by who has the signing keys (--log)"

# Problems of a kind beyond this many are counted, not listed.
TOLD_MAX = 100
# So are records without a root that the terms let pass.
FRESH_TOLD_MAX = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: its kind, its place, and its meaning."""

    kind: Kind
    where: str
    message: str


@dataclass(slots=True)
class Findings:
    """The outcome. ``notes`` are no problems; they say what was found beside them.

    ``open`` counts accepted requests that had not ended, ``fresh`` records newer than the roots
    read, of which ``fresh_at`` names the first few; ``heads`` are the last roots, for comparison in
    the next verification. ``checked`` says what was checked, ``unchecked`` what was not and what
    would be needed for it.
    """

    records: int = 0
    roots: int = 0
    requests: int = 0
    open: int = 0
    fresh: int = 0
    fresh_at: list[str] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    heads: dict[str, ChainHead] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if there are no problems."""
        return not self.counts

    def add(self, kind: Kind, where: str, message: str) -> None:
        """Add a problem."""
        self.counts[kind] += 1
        if self.counts[kind] <= TOLD_MAX:
            self.problems.append(Finding(kind, where, message))

    def add_fresh(self, where: str) -> None:
        """Note a record without a root that the terms let pass."""
        self.fresh += 1
        if self.fresh <= FRESH_TOLD_MAX:
            self.fresh_at.append(where)

    def told_fresh(self) -> str:
        """Return where records without a root stand."""
        more = ", ..." if self.fresh > len(self.fresh_at) else ""
        return f"{', '.join(self.fresh_at)}{more}"
