"""Reply lengths per class, model and tenant, learned by the workers."""

from collections.abc import Sequence
from math import fsum

from policies.learning.histogram import DecayingHistogram, merged, quantile
from topics import OutputLengths
from topics.bounded_dict import BoundedDict
from topics.records.frozen import dataclass

Key = tuple[str, str, str]
"""Class, model, tenant."""

# Replies of one key that count, about.
MEMORY = 1000
# Keys that one worker keeps, the last seen; and the number that it reports.
KEYS_MAX = 256
TOLD_MAX = 32
# Replies before what was seen counts for more than what the policy says.
SEEN_MIN = 20.0
HIGH = 0.95
# Answers that a router keeps; a tenant's name is the client's choice, and there may be many.
FOUND_MAX = 4096


@dataclass(frozen=True, slots=True)
class ReplyLength:
    """Expected length of a reply, in tokens.

    ``expected`` is the mean, because device time and cost grow with the length; ``high`` is the
    95 % quantile; ``confidence`` grows with the number seen, from 0.5 towards 0.9.
    """

    expected: int
    high: int
    confidence: float


class LengthLog:
    """Reply lengths that one worker has seen."""

    def __init__(self) -> None:
        self._sketches: BoundedDict[Key, DecayingHistogram] = BoundedDict(KEYS_MAX)

    def learn(self, task: str, model: str, tenant: str, output_tokens: int) -> None:
        """Count a reply; one without tokens (embeddings) is ignored."""
        if output_tokens < 1:
            return
        key = (task, model, tenant)
        sketch = self._sketches.get(key) or DecayingHistogram(MEMORY)
        sketch.add(output_tokens)
        self._sketches.put(key, sketch)

    def told(self) -> tuple[OutputLengths, ...]:
        """Return the keys with the most replies, in the heartbeat's form."""
        ranked = sorted(self._sketches.items(), key=lambda pair: (-pair[1].total, pair[0]))
        return tuple(
            OutputLengths(*key, round(sketch.mean, 1), sketch.counts())
            for key, sketch in ranked[:TOLD_MAX]
        )


class Lengths:
    """Reply lengths that all live workers have seen, from their heartbeats."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[OutputLengths, ...]] = {}
        # Merged when asked for: requests of one kind come far more often than heartbeats.
        self._found: dict[Key, ReplyLength | None] = {}

    def report(self, worker: str, told: tuple[OutputLengths, ...]) -> None:
        """Replace a worker's earlier report."""
        self._told[worker] = told
        self._found.clear()

    def drop(self, worker: str) -> None:
        """Drop the report of a worker that has stopped reporting."""
        self._told.pop(worker, None)
        self._found.clear()

    def find(self, task: str, model: str, tenant: str) -> ReplyLength | None:
        """Return the expected length of a reply; None if too few similar ones were seen.

        The tenant's own replies count if there are enough, else those of all tenants.
        """
        key = (task, model, tenant)
        if key not in self._found:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            alike = [
                t
                for told in self._told.values()
                for t in told
                if (t.task, t.model) == (task, model)
            ]
            own = [t for t in alike if t.tenant == tenant]
            self._found[key] = _length_of(own) or _length_of(alike)
        return self._found[key]


def _length_of(each: Sequence[OutputLengths]) -> ReplyLength | None:
    counts = merged(t.counts for t in each)
    seen = sum(counts)
    if seen < SEEN_MIN:
        return None
    # fsum is exact, so the order in which workers were heard of makes no difference.
    tokens = fsum(t.mean_tokens * sum(t.counts[1:]) for t in each)
    expected = max(1, round(tokens / seen))
    high = max(expected, round(quantile(counts, HIGH)))
    return ReplyLength(expected, high, round(0.9 - 0.4 * SEEN_MIN / seen, 2))
