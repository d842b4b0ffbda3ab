"""The live view: one look at the whole system, folded from its topics. No clock, no I/O."""

from collections import deque

import msgspec

from policies import Option, Options, Policy
from policies.quality.verdict_state import KnownQuality
from streams.engine.log import Record
from streams.evidence.projection import RoutedStep, SeenEnvelope, SeenTarget, decode_routed_step
from streams.evidence.slo_outcomes import outcomes
from streams.live.counters import NAMES_MAX, OTHER, LiveCounters, name_in
from streams.live.holds import HoldIndex
from streams.live.premium import able_premium, premium_usd_of
from streams.live.sliding_window import SlidingWindow
from streams.live.snapshot import FallbackView
from streams.live.workers import Workers
from topics import BadRecordError, Catalogue, PoolStatus, QualityEntry, decode
from topics.bounded_dict import BoundedDict
from topics.records.evidence import ENDS

WINDOW_S = 60.0
FALLBACKS_MAX = 50
# Open requests whose wishes are remembered; about 400 bytes each.
ASKED_MAX = 100_000

_Asked = tuple[SeenTarget, tuple[Option, ...]]


class LiveView:
    """Folds evidence, heartbeats, the hold and verdicts on answers.

    The evidence of an end has all of its result. Memory is bounded by the hold
    (``held_records_max``) and by limits on everything else.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        options: Options,
        policy: Policy,
        *,
        since: float,
        window_s: float = WINDOW_S,
        held_records_max: int = 1_000_000,
    ) -> None:
        """Begin at ``since``, epoch seconds; earlier events are not counted."""
        self._catalogue = catalogue
        self.since = since
        self.window = SlidingWindow(window_s)
        self.total = LiveCounters()
        self.workers = Workers()
        self.quality = KnownQuality()
        self.holds = HoldIndex(held_records_max)
        self.fallbacks: deque[FallbackView] = deque(maxlen=FALLBACKS_MAX)
        self.unreadable = 0
        self.newest_at: float | None = None
        self._asked: BoundedDict[str, _Asked] = BoundedDict(ASKED_MAX)
        self._tasks: set[str] = set()
        self.change(options, policy)

    def change(self, options: Options, policy: Policy) -> None:
        """Use another fleet and policy from now on; existing counts stay."""
        self.options = options
        self.policy = policy
        self._tasks |= set(policy.classes)

    @property
    def topics(self) -> list[str]:
        """All topics to read, whether from now on or in whole."""
        return [self._catalogue.evidence, *self.whole_topics]

    @property
    def whole_topics(self) -> list[str]:
        """The compacted topics, of which every record counts, however old."""
        return [self._catalogue.pool_status, self._catalogue.held, self._catalogue.quality]

    def take(self, record: Record, now: float) -> None:
        """Process a record. An unreadable one is counted and skipped."""
        topic, value = record.partition.topic, record.value
        self.newest_at = max(self.newest_at or 0.0, record.timestamp_ms / 1000)
        try:
            if topic == self._catalogue.held:
                self.holds.take(record)
            elif value is None:
                return
            elif topic == self._catalogue.evidence:
                self.step(decode_routed_step(value), now)
            elif topic == self._catalogue.pool_status:
                self.workers.take(decode(PoolStatus, value))
                self.workers.forget(now)
            elif topic == self._catalogue.quality:
                self.quality.take(decode(QualityEntry, value))
        except (msgspec.MsgspecError, BadRecordError):
            self.unreadable += 1

    def step(self, step: RoutedStep, now: float) -> None:
        """Process a piece of evidence. A time ahead of our clock counts as now."""
        step.at = min(step.at, now)
        self._remember(step)
        if step.at < self.since:
            return
        for tally in (self.window.at(step.at, now), self.total):
            if tally is not None:
                self._count(step, tally)
        self._follow_fallback(step)
        if step.step in ENDS:
            self._asked.pop(step.request_id, None)

    def _remember(self, step: RoutedStep) -> None:
        # A release decides for a whole batch, and only its first member has the evidence.
        if step.profile is None or step.step == "released":
            return
        self._asked.put(step.request_id, (step.profile, able_premium(step, self.options)))

    def _count(self, step: RoutedStep, tally: LiveCounters) -> None:
        if step.step == "dead_lettered":
            tally.dead_letters[name_in(tally.dead_letters, step.reason or OTHER)] += 1
        elif step.step == "duplicate":
            tally.duplicates += 1
        elif step.step == "fell_back":
            if step.fallback is not None:
                tally.of_pool(step.fallback.pool).fallbacks += 1
        elif step.step in ENDS:
            self._count_end(step, ENDS[step.step], tally)
        if step.spent is not None:
            tally.usd += step.spent.usd
            if step.placement is not None:
                tally.of_pool(step.placement.pool).usd += step.spent.usd
        # A batch ran in the hold; its members leave it by a step of their own.
        if step.hold is not None and step.step == "released":
            group = tally.of_group(step.hold.group)
            group.released += 1
            group.batches += step.batch is None or step.batch.index == 0
            group.reasons[name_in(group.reasons, step.reason or OTHER)] += 1

    def _count_end(self, step: RoutedStep, status: str, tally: LiveCounters) -> None:
        tally.statuses[status] += 1
        workload = tally.of_class(self._task(step))
        workload.statuses[status] += 1
        if step.got is None:
            tally.refusals[name_in(tally.refusals, step.reason or OTHER)] += 1
        asked = self._asked.get(step.request_id)
        # Of requests decided before the view began, only misses would be known.
        outcome = {} if asked is None else outcomes(step, asked[0])
        if outcome:
            workload.judged += 1
            workload.kept += outcome["all"]
        if step.got is None:
            return
        workload.finish.add(step.got.finish_s)
        if step.got.ttft_s is not None:
            workload.ttft.add(step.got.ttft_s)
        self._count_money(step, step.got, asked, tally)

    def _count_money(
        self, step: RoutedStep, got: SeenEnvelope, asked: _Asked | None, tally: LiveCounters
    ) -> None:
        tally.usd += got.cost_usd
        if step.placement is not None:
            pool = tally.of_pool(step.placement.pool)
            pool.usd += got.cost_usd
            pool.energy_wh += step.energy_wh or 0.0
            if step.usage is not None:
                pool.prompt_tokens += step.usage.input_tokens
                pool.cached_tokens += step.usage.cached_tokens
            if step.placement.path == "batch":
                pool.batch += 1
            else:
                pool.direct += 1
        premium_usd = None if asked is None else premium_usd_of(step, *asked, self.options)
        if premium_usd is not None:
            tally.compared += 1
            tally.compared_usd += got.cost_usd
            tally.premium_usd += premium_usd

    def _task(self, step: RoutedStep) -> str:
        """Return the class of a step; one from the client's words only may not exist."""
        if step.task is None:
            return OTHER
        if (step.step != "rejected" or step.profile is not None) and (len(self._tasks) < NAMES_MAX):
            self._tasks.add(step.task)
        return step.task if step.task in self._tasks else OTHER

    def _follow_fallback(self, step: RoutedStep) -> None:
        if step.step == "fell_back" and step.fallback is not None:
            self.fallbacks.append(
                FallbackView(
                    step.request_id,
                    step.at,
                    step.task,
                    step.fallback.pool,
                    None,
                    step.reason,
                    step.attempt,
                )
            )
        elif step.attempt > 1 and step.placement is not None:
            for fallback in self.fallbacks:
                if (fallback.request_id, fallback.attempt) == (step.request_id, step.attempt - 1):
                    fallback.to_pool = step.placement.pool
