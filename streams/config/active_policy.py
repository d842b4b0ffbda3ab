"""The configuration in force in a router process: policy, fleet, and current conditions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from policies import Options, Policy, Situation, beside, compile_options
from streams.config.declarations import Declarations
from streams.config.token_counting import TokenCounter, load_token_counter
from streams.evidence.records import EvidenceWriter
from topics import PoolStatus


@dataclass(frozen=True, slots=True)
class DecisionContext:
    """What a stage decides by, and the evidence writer who writes down that it was by this.

    ``shadow`` is the situation of a second policy, where one decides beside the first.
    """

    situation: Situation
    evidence_writer: EvidenceWriter
    tokens: TokenCounter
    shadow: Situation | None = None


class ActivePolicy:
    """The newest terms. Each stage takes them between two of its steps, never in the middle.

    So router and batcher may be a step apart; each piece of evidence names what it was decided by.
    """

    def __init__(self, terms: DecisionContext) -> None:
        self.terms = terms
        self._told: list[Callable[[Situation], object]] = []

    @property
    def situation(self) -> Situation:
        """The newest situation."""
        return self.terms.situation

    def tell(self, changed: Callable[[Situation], object]) -> None:
        """Let ``changed`` know each new situation at once: for what only counts or shows."""
        self._told.append(changed)

    def report(self, status: PoolStatus) -> None:
        """Take a heartbeat in."""
        self.situation.view.report(status)

    def change(self, declared: Declarations) -> None:
        """Put a fleet and a policy in force; nothing changes where one of them can't be used.

        Raises:
            DeclarationError: a tokenizer of the fleet can't be read.
        """
        now = self.situation
        options: Options = now.options
        tokens = self.terms.tokens
        if declared.fleet.version != options.version:
            tokens = load_token_counter(declared.fleet)
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
            # It goes on with what it has seen come.
            return Situation(here.options, before.policy, here.view, before.arrivals)
        return beside(here.options, policy, here.view)

    def keep(self, take: Callable[[DecisionContext], None]) -> Callable[[], None]:
        """Return what hands new terms to a stage, to be called while none of its work goes on."""
        taken = self.terms

        def bring() -> None:
            nonlocal taken
            if self.terms is not taken:
                taken = self.terms
                take(taken)

        return bring
