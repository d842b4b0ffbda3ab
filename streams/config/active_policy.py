"""The configuration in force in a process: policy, fleet, and current conditions."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from policies import Fleet, Options, Policy, Situation, beside, compile_options
from streams.config.declarations import Declarations
from streams.config.token_counting import TokenCounter, load_token_counter
from streams.evidence.records import EvidenceWriter
from topics import PoolStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecisionContext:
    """The terms that a stage decides by, and the writer that names them in the evidence.

    ``shadow`` is the situation of a second policy, if one decides beside the first.
    """

    situation: Situation
    evidence_writer: EvidenceWriter
    tokens: TokenCounter
    shadow: Situation | None = None


class ActivePolicy:
    """The newest terms. Each stage adopts them between two of its steps, never within one.

    So router and batcher may be a step apart; each piece of evidence names the terms it used.
    """

    def __init__(
        self,
        terms: DecisionContext,
        count_tokens: Callable[[Fleet], TokenCounter] = load_token_counter,
    ) -> None:
        self.terms = terms
        self._count_tokens = count_tokens
        self._told: list[Callable[[Situation], object]] = []

    @property
    def situation(self) -> Situation:
        """The newest situation."""
        return self.terms.situation

    def tell(self, changed: Callable[[Situation], object]) -> None:
        """Call ``changed`` at once with each new situation: for code that only counts or shows."""
        self._told.append(changed)

    def report(self, status: PoolStatus) -> None:
        """Add a heartbeat; one that the fleet does not declare so is refused, and said so once."""
        view, key = self.situation.view, (status.pool, status.instance)
        before = view.misfits.get(key)
        view.report(status)
        found = view.misfits.get(key)
        if found is not None and found != before:
            logger.error(
                "worker %s of pool %s says it has %s: nothing goes to the pool until it is right or"
                " gone",
                *(status.instance, status.pool, found),
            )

    def judged(self, drifted: Mapping[str, frozenset[str]]) -> None:
        """Set the variants whose answers have drifted from a reference, by pool."""
        self.situation.view.judged(drifted)

    def change(self, declared: Declarations) -> None:
        """Put a fleet and a policy in force; nothing changes if one of them is unusable.

        Raises:
            DeclarationError: a tokenizer of the fleet can't be read.
        """
        now = self.situation
        options: Options = now.options
        tokens = self.terms.tokens
        if declared.fleet.version != options.version:
            tokens = self._count_tokens(declared.fleet)
            options = compile_options(declared.fleet)
        evidence_writer = replace(
            self.terms.evidence_writer,
            policy_version=declared.policy.version,
            fleet_version=options.version,
        )
        here = now.under(options, declared.policy)
        self.terms = DecisionContext(
            here, evidence_writer, tokens, self._shadow(declared.shadow, here)
        )
        for changed in self._told:
            changed(here)

    def _shadow(self, policy: Policy | None, here: Situation) -> Situation | None:
        if policy is None:
            return None
        before = self.terms.shadow
        if before is not None and before.policy.version == policy.version:
            # It keeps the arrivals that it has seen.
            return Situation(here.options, before.policy, here.view, before.arrivals)
        return beside(here.options, policy, here.view)

    def keep(self, take: Callable[[DecisionContext], None]) -> Callable[[], None]:
        """Return a function that gives a stage new terms, to be called while it has no work."""
        taken = self.terms

        def bring() -> None:
            nonlocal taken
            if self.terms is not taken:
                taken = self.terms
                take(taken)

        return bring
