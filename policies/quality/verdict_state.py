"""State of the verdicts on variants' answers: the newest entry of each, as the topic has them."""

from collections.abc import Mapping

from policies.quality.verdicts import Judged, judged_of
from topics import QualityEntry, VariantQuality, WatchSpending


class KnownQuality:
    """The newest state of each test, and the newest spending of each class."""

    def __init__(self) -> None:
        self.variants: dict[Judged, VariantQuality] = {}
        self.spent: dict[str, WatchSpending] = {}

    def take(self, entry: QualityEntry) -> bool:
        """Take an entry, which is newer than all before; return whether a verdict changed."""
        state, spending = entry.variant, entry.spending
        if spending is not None:
            self.spent[spending.task] = spending
        if state is None:
            return False
        before = self.variants.get(judged_of(state))
        self.variants[judged_of(state)] = state
        return (before.verdict if before else "open") != state.verdict

    def drifted(self) -> Mapping[str, frozenset[str]]:
        """Return by pool the variants that have drifted from any reference."""
        found: dict[str, set[str]] = {}
        for state in self.variants.values():
            if state.verdict == "drifted":
                found.setdefault(state.pool, set()).add(state.variant)
        return {pool: frozenset(variants) for pool, variants in found.items()}

    def has_drifted(self, judged: Judged) -> bool:
        """Return True if a variant has drifted from this reference."""
        state = self.variants.get(judged)
        return state is not None and state.verdict == "drifted"
