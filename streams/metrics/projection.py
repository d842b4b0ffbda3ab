"""Metrics of a transaction, counted from its evidence once it is visible to everyone."""

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from policies import Release
from policies.scoring.candidates import Candidates
from streams.engine.log import Partition
from streams.engine.stage import Effect
from streams.evidence.slo_outcomes import DIMENSIONS, outcomes
from streams.metrics import registry as m
from streams.metrics.instruments import Instruments, Names
from streams.metrics.metric import Metric, gen_ai_operation
from topics import Candidate, Envelope, Evidence, Placement, Profile, Result, Usage
from topics.records.evidence import ENDS

# Codes are ours or a worker's, and few; any other is `other`.
REASONS_MAX = 64
_CHANCES = [f"{bound:g}" for bound in m.CHANCES]

ProfileOf = Callable[[Effect], Profile | None]
Counts = defaultdict[tuple[Metric | str, ...], float]
CallKind = tuple[str, str, str]
"""Operation, provider and model of a call."""

logger = logging.getLogger(__name__)


def no_profile(_effect: Effect) -> None:
    """Return None: the stage knows no more of a request than its evidence."""


class Fold:
    """Counts the effects of transactions; an observer of transactors.

    The counts of one record are added up before an instrument is touched.
    """

    def __init__(
        self,
        instruments: Instruments,
        *,
        tasks: Collection[str],
        tenants: Names,
        premium_pools: Collection[str],
        providers: Mapping[str, str],
        profile_of: ProfileOf = no_profile,
    ) -> None:
        self._instruments = instruments
        self._tenants = tenants
        self._reasons = Names((), REASONS_MAX)
        self._profile_of = profile_of
        self._has_failed = False
        self.change(tasks, premium_pools, providers)

    def change(
        self,
        tasks: Collection[str],
        premium_pools: Collection[str],
        providers: Mapping[str, str],
    ) -> None:
        """Count by these classes, pools and providers (by pool) from now on."""
        self._tasks = frozenset(tasks)
        self._premium = frozenset(premium_pools)
        self._providers = dict(providers)
        # Without a count a share has no value, and an alert on it would be silent.
        for task in tasks:
            for dimension in DIMENSIONS:
                for outcome in ("kept", "missed"):
                    self._instruments.add(m.SLO_OUTCOMES, (task, dimension, outcome), 0)

    def __call__(self, partition: Partition, effects: Sequence[Effect]) -> None:
        """Count a visible transaction. A fault in counting is logged once and ends nothing."""
        try:
            self._count(effects)
        except Exception:
            if not self._has_failed:
                logger.exception("metrics of %s are incomplete; this is told once", partition)
            self._has_failed = True

    def _count(self, effects: Sequence[Effect]) -> None:
        counts: Counts = defaultdict(float)
        for effect in effects:
            if isinstance(effect.subject, Release):
                self._batch(effect.subject)
            for record in effect.records:
                told = record.payload
                if isinstance(told, Evidence):
                    self._step(told, effect, counts)
                elif isinstance(told, Result):
                    self._result(told)
        for (metric, *labels), amount in counts.items():
            self._instruments.add(metric, tuple(labels), amount)  # type: ignore[arg-type]

    def _step(self, evidence: Evidence, effect: Effect, counts: Counts) -> None:
        step = evidence.step
        # If it is no request, or names no class of ours, a client chose the name.
        task = evidence.task if evidence.task in self._tasks else Names.OTHER
        counts[m.STEPS, step, task] += 1
        if step in {"placed", "held"}:
            self._decision(evidence, task, counts)
        elif step == "released":
            self._release(evidence, task, counts)
        elif step == "fell_back" and evidence.fallback is not None:
            pool, reason = evidence.fallback.pool, self._reasons.of(evidence.fallback.reason)
            counts[m.FALLBACKS, task, pool, reason] += 1
        elif step == "dead_lettered":
            counts[m.DEAD_LETTERS, self._reasons.of(evidence.reason)] += 1
        spent, placement = evidence.spent, evidence.placement
        if spent is not None and placement is not None:
            tenant = self._tenants.of(evidence.tenant)
            counts[m.COST, task, placement.pool, tenant] += spent.usd
        status = ENDS.get(step)
        if status is not None:
            self._end(evidence, effect, task, status, counts)

    def _decision(self, evidence: Evidence, task: str, counts: Counts) -> None:
        self._place(evidence.placement, task, counts)
        premium = None
        refused, costs_usd = _outcomes(evidence.candidates)
        for pool, code in refused:
            counts[m.REFUSED, pool, code] += 1
        for pool, usd in costs_usd:
            if pool in self._premium:
                premium = usd if premium is None else min(premium, usd)
        promised = evidence.promised
        # Holding a request that fell back saves nothing again.
        if premium is not None and promised is not None and evidence.attempt == 1:
            counts[m.DECISION_COST, task, "chosen"] += promised.cost_usd
            counts[m.DECISION_COST, task, "premium"] += premium

    @staticmethod
    def _place(placement: Placement | None, task: str, counts: Counts) -> None:
        if placement is not None:
            where = (placement.pool, placement.model_variant, placement.path)
            counts[m.PLACEMENTS, task, *where] += 1

    def _release(self, evidence: Evidence, task: str, counts: Counts) -> None:
        self._place(evidence.placement, task, counts)
        if evidence.hold is not None:
            counts[m.RELEASES, task, evidence.hold.reason] += 1
            self._instruments.observe(m.HOLD_DURATION, evidence.hold.held_s, task)

    def _batch(self, release: Release) -> None:
        target, size = release.target, len(release.members)
        if target.path == "batch":
            where = (target.option.pool, target.option.variant)
            self._instruments.observe(m.BATCH_SIZE, size, *where)
            self._instruments.observe(m.BATCH_FILL, size / max(target.members_max, size), *where)

    def _end(
        self, evidence: Evidence, effect: Effect, task: str, status: str, counts: Counts
    ) -> None:
        tenant = self._tenants.of(evidence.tenant)
        counts[m.ENDED, task, tenant, status] += 1
        if evidence.attempt > 1:
            counts[m.RETRIED, task] += 1
        placement = evidence.placement
        kept = outcomes(evidence, self._profile_of(effect))
        for dimension, is_kept in kept.items():
            counts[m.SLO_OUTCOMES, task, dimension, "kept" if is_kept else "missed"] += 1
        if status != "completed":
            pool = "none" if placement is None else placement.pool
            counts[m.FAILURES, task, status, self._reasons.of(evidence.reason), pool] += 1
        elif placement is not None and evidence.got is not None:
            counts[m.COST, task, placement.pool, tenant] += evidence.got.cost_usd
            kind = self._kind(effect, placement.pool)
            self._latencies(evidence, evidence.got, task, placement, kind)
            self._usage(evidence.usage, task, placement.pool, kind, counts)
            self._prediction(evidence.promised, evidence.got, placement.pool, kept, counts)

    def _kind(self, effect: Effect, pool: str) -> CallKind:
        """Return operation, provider and model, as the GenAI conventions have them."""
        profile, provider = self._profile_of(effect), self._providers.get(pool, Names.OTHER)
        if profile is None:
            return Names.OTHER, provider, Names.OTHER
        return gen_ai_operation(profile.operation), provider, profile.model

    def _latencies(
        self,
        evidence: Evidence,
        got: Envelope,
        task: str,
        place: Placement,
        kind: CallKind,
    ) -> None:
        where = (*kind, task, place.pool, place.model_variant)
        observe, trace_id = self._instruments.observe, evidence.trace_id
        observe(m.DURATION, got.finish_s, *where, trace_id=trace_id)
        if got.ttft_s is not None:
            observe(m.TTFT, got.ttft_s, *where, trace_id=trace_id)
        if got.tpot_s is not None:
            observe(m.TPOT, got.tpot_s, *where, trace_id=trace_id)

    def _usage(
        self, usage: Usage | None, task: str, pool: str, kind: CallKind, counts: Counts
    ) -> None:
        if usage is None:
            return
        observe, where = self._instruments.observe, (*kind, task, pool)
        observe(m.TOKENS, usage.input_tokens, "input", *where)
        observe(m.TOKENS, usage.output_tokens, "output", *where)
        self._instruments.observe(m.TOOL_CALLS, usage.tool_calls, task)
        counts[m.CACHED, task, pool] += usage.cached_tokens

    def _prediction(
        self,
        promised: Envelope | None,
        got: Envelope,
        pool: str,
        kept: dict[str, bool],
        counts: Counts,
    ) -> None:
        if promised is None:
            return
        pairs = (
            ("cost", got.cost_usd, promised.cost_usd),
            ("ttft", got.ttft_s, promised.ttft_s),
            ("finish", got.finish_s, promised.finish_s),
        )
        for dimension, was, said in pairs:
            if was is not None and said:
                self._instruments.observe(m.PREDICTION, was / said, pool, dimension)
        if promised.chance is not None and kept:
            bound = _CHANCES[min(bisect_left(m.CHANCES, promised.chance), len(_CHANCES) - 1)]
            counts[m.CALIBRATION, pool, bound, "kept" if kept["all"] else "missed"] += 1

    def _result(self, result: Result) -> None:
        place, timing = result.placement, result.timing
        if place is None or timing.started_at is None or timing.finished_at is None:
            return
        spent_s = timing.finished_at - timing.started_at
        self._instruments.observe(m.EXECUTION, spent_s, place.pool, place.model_variant)


def _outcomes(
    candidates: Sequence[Candidate],
) -> tuple[Iterable[tuple[str, str]], Iterable[tuple[str, float]]]:
    """Return pool and reason code of what was refused, pool and cost of what would go at once."""
    if isinstance(candidates, Candidates):
        return candidates.refusals(), candidates.direct_costs()
    refused = [(each.pool, each.refused) for each in candidates if each.refused is not None]
    costs_usd = [
        (each.pool, each.cost_usd)
        for each in candidates
        if each.cost_usd is not None and each.path == "direct"
    ]
    return refused, costs_usd
