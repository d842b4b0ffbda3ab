"""Records of the quality watch: what a second run is for, one comparison, and what came of all.

None holds text of a request or of an answer: differences, counts and numbers of groups alone.
"""

import json
from dataclasses import field
from typing import Literal

from topics.records.frozen import dataclass

BACKGROUND_TASK = "quality-reference"
"""The class of every second run, so that it counts for no class of clients. No class of a policy
can have this name."""

Asked = Literal["reference", "judged"]
Verdict = Literal["open", "as_reference", "drifted"]
"""``open``: too little is known; ``as_reference``: as the reference, within the allowed
difference; ``drifted``: it differs by more."""


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """The purpose of a request's second run, in its profile.

    Attributes:
        task: the request's class.
        reference: the model variant that others are compared with.
        compare: how, see ``policies.quality.comparison``.
        within: mean difference that is allowed, 0 to 1.
        window_s: longest wait of the second run for company, seconds.
        deadline_s: time that the second run has, seconds.
        reference_pool: the pool of the reference; None is any.
        pool: whose answers are judged; None until it is known.
        variant: likewise.
        of: of a second run, the id of the request; None in the profile of the request itself.
        asked: of a second run, which of the two it asks.
        probe: pool and variant that have drifted, and are asked too, to see whether they still do.
    """

    task: str
    reference: str
    compare: str
    within: float
    window_s: float
    deadline_s: float
    reference_pool: str | None = None
    pool: str | None = None
    variant: str | None = None
    of: str | None = None
    asked: Asked | None = None
    probe: tuple[str, str] | None = None

    def is_reference(self, pool: str, variant: str) -> bool:
        """Return True if a variant in a pool is the reference."""
        return variant == self.reference and self.reference_pool in (None, pool)

    def allows(self, pool: str, variant: str) -> bool:
        """Return True if the request may go there: a second run goes only to those it asks."""
        if self.of is None:
            return True
        if self.asked == "reference":
            return self.is_reference(pool, variant)
        return (pool, variant) == (self.pool, self.variant)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one request, compared. ``at`` is epoch seconds.

    Attributes:
        id: id of the second run.
        of: id of the request.
        task: the request's class.
        pool: whose answer was judged.
        variant: likewise.
        reference: the variant that it was compared with.
        reference_pool: its pool, if only that counts as the reference.
        compare: how.
        within: mean difference that is allowed.
        difference: 0 (the same) to 1; None where the answers can't be compared.
        cost_usd: cost of the second run.
        answer_group: which of a few groups the reference's answer is in, where answers are labels
            or calls; None where they are words, or the writer knew of no groups.
    """

    id: str
    of: str
    at: float
    task: str
    pool: str
    variant: str
    reference: str
    compare: str
    within: float
    difference: float | None
    cost_usd: float
    reference_pool: str | None = None
    answer_group: int | None = None


@dataclass(frozen=True, slots=True)
class ComparisonTally:
    """Comparisons of one class: their number, and the sum of their differences."""

    samples: int = 0
    difference: float = 0.0


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """Comparisons in which the reference's answer is in one group.

    Attributes:
        place: it was the nth that came up.
        samples: their number, since the test began.
        difference: the sum of their differences.
        drift: wealth of each bet that these differ by more than is allowed.
    """

    place: int
    samples: int = 0
    difference: float = 0.0
    drift: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class VariantQuality:
    """The state of the test of one variant in one pool against one reference.

    Attributes:
        pool: whose answers are judged.
        variant: likewise.
        reference: the variant that they are compared with.
        reference_pool: its pool, if only that counts.
        verdict: the newest.
        since: when it was reached, epoch seconds.
        at: time of the newest comparison, epoch seconds.
        samples: comparisons in all.
        uncompared: second runs whose answers could not be compared.
        within: mean difference that the newest comparison allows.
        recent: mean difference of about the last hundred.
        episode: number of times that the test began anew, plus one.
        drift: wealth of each bet that it differs by more than is allowed.
        drift_samples: comparisons that these have seen.
        sound: wealth of each bet that it differs by less.
        sound_samples: likewise.
        classes: comparisons by class.
        groups: comparisons by group of the reference's answer, as text; those that came up first.
        drifted_in: of a drifted variant, the group whose answers showed it; None: all together.
    """

    pool: str
    variant: str
    reference: str
    reference_pool: str | None = None
    verdict: Verdict = "open"
    since: float = 0.0
    at: float = 0.0
    samples: int = 0
    uncompared: int = 0
    within: float = 0.0
    recent: float = 0.0
    episode: int = 1
    drift: tuple[float, ...] = ()
    drift_samples: int = 0
    sound: tuple[float, ...] = ()
    sound_samples: int = 0
    classes: dict[str, ComparisonTally] = field(default_factory=dict)
    groups: dict[str, AnswerGroup] = field(default_factory=dict)
    drifted_in: str | None = None


@dataclass(frozen=True, slots=True)
class WatchSpending:
    """Cost of the second runs of a class on a day in UTC, in US dollars; days since the epoch."""

    task: str
    day: int
    usd: float = 0.0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class QualityEntry:
    """A record of the quality topic: one of the two."""

    variant: VariantQuality | None = None
    spending: WatchSpending | None = None


def quality_key(entry: QualityEntry) -> bytes:
    """Return the key of an entry, by which compaction keeps the newest of each."""
    found, spent = entry.variant, entry.spending
    if found is not None:
        names = ["variant", found.pool, found.variant, found.reference, found.reference_pool]
        return json.dumps(names, separators=(",", ":")).encode()
    return json.dumps(["spending", "" if spent is None else spent.task]).encode()
