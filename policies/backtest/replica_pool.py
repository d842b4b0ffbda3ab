"""A pool of the modelled fleet: its replicas, driven by calls like a worker's simulated backend."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, nextafter
from statistics import NormalDist

from policies.backtest.fault_model import Reality, true_roofline
from policies.backtest.outcome import ReplayOutcome
from policies.config.options import Option
from policies.hardware.accelerator import VariantLimits
from policies.hardware.answering import AnsweringReplica
from policies.hardware.constants import at_speed
from policies.hardware.device_time import DeviceShare
from policies.hardware.iteration import Cancelled, Completion, FirstToken, Job, Moved
from policies.hardware.migration import Migration
from policies.hardware.pool_fill import PoolFill
from policies.hardware.pool_line import PoolLine, may_wait
from policies.hardware.prefix_cache import PrefixCache
from policies.hardware.replica import Ask, due_left_s
from policies.learning.device_constants import Measured
from policies.learning.device_speed import Pace, shared_by
from policies.learning.feedback import Experience
from policies.scoring.answers import Answers
from policies.scoring.hours import device_wh, footprint, price_factor
from topics import Envelope, PoolStatus, ServerLoad, Usage, VariantStatus
from topics.bounded_dict import BoundedDict
from topics.records.placement import Path

HEARTBEAT_S = 1.0
# Batches whose replica is remembered, as in the simulated backend.
BATCHES_MAX = 4096

Draw = Callable[[], float]
"""A uniform random number in [0, 1)."""


@dataclass(eq=False, slots=True)
class Try:
    """One request on its way to or at a pool; ``mark`` is of its share since ``began_at``.

    ``ahead_s`` and ``others_s`` are what `Measured` has of it, ``output_tokens`` what it writes,
    ``share_s`` its share on the replicas that it has left.
    """

    outcome: ReplayOutcome
    option: Option
    path: Path
    batch_id: str | None
    fails: bool = False
    replica: int = 0
    ahead_s: float = 0.0
    others_s: float = 0.0
    began_at: float = 0.0
    mark: float = 0.0
    output_tokens: int = 0
    share_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TryEnded:
    """The end of a try. ``reason`` says why it failed; None: it completed."""

    attempt: Try
    at: float
    reason: str | None = None


class ModelPool:
    """All replicas of a pool. Times are virtual seconds; behaviour depends on the calls only.

    Replicas, and what is learned of them, have seconds of the model: a pool that is declared
    ``time_scale`` times as fast has that many of them in one. It is paid by seconds of the model.
    """

    def __init__(self, options: Sequence[Option], reality: Reality, draw: Draw) -> None:
        self.options = {option.variant: option for option in options}
        self.name = options[0].pool
        self._failure_rate = reality.failure_rate
        self._draw = draw
        self._pace = Pace()
        self._experience = Experience(options[0].failure_rate)
        self._fill = PoolFill()
        self._tries: dict[str, Try] = {}
        # By replica, then by variant.
        self._shares = [
            {option.variant: DeviceShare(1) for option in options}
            for _ in range(options[0].replicas)
        ]
        self._batches: BoundedDict[str, int] = BoundedDict(BATCHES_MAX)
        self._failed: deque[TryEnded] = deque()
        self._begun: list[tuple[Try, int]] = []
        self._count = 0
        self.is_down = False
        self.is_draining = False
        self.tokens_usd = 0.0
        self.moving_usd = 0.0
        self._time_scale = options[0].time_scale
        self._latency_s = options[0].latency_s * reality.factors(self.name).first_token
        self.replicas = []
        for _ in range(options[0].replicas):
            noise = NormalDist(0.0, reality.noise).inv_cdf(draw()) if reality.noise else 0.0
            factor = 2.718281828459045**noise
            limits = {
                o.variant: VariantLimits(at_speed(true_roofline(o, reality), factor), o.max_batch)
                for o in options
            }
            prefixes = PrefixCache() if reality.prefix_cache else None
            keeps_tpot = options[0].keeps_tpot
            self.replicas.append(AnsweringReplica(limits, prefixes, keeps_tpot=keeps_tpot))
        self._line: PoolLine[Try] = PoolLine(self.replicas, self._fill)
        self._migration = Migration(self.replicas, self._fill) if options[0].migrates else None

    @property
    def is_idle(self) -> bool:
        """True if nothing runs or waits on any replica."""
        return not self._tries and not self._line

    @property
    def latency_s(self) -> float:
        """Time that a request takes beside the device."""
        return self._latency_s / self._time_scale

    @property
    def busy_s(self) -> float:
        """Busy time of all replicas, in seconds of the model."""
        return sum(replica.accelerator.busy_s for replica in self.replicas)

    def submit(self, attempt: Try, now: float) -> None:
        """Take a request; `start` says when it begins. Fails at once if the pool is down."""
        if self.is_down:
            self._fail(attempt, now)
            return
        outcome, profile = attempt.outcome, attempt.outcome.profile
        ask = Ask.of(
            profile,
            attempt.option.variant,
            max(1, outcome.input_tokens // profile.prompts),
            profile.session,
            now,
            self._time_scale,
        )
        if may_wait(attempt.path, profile.tier, ask):
            self._line.join(attempt, ask, now * self._time_scale)
        else:
            index = self._replica_for(attempt.batch_id, ask, now * self._time_scale)
            self._begin(attempt, index, now)
            self._begun.append((attempt, index))

    def start(self, now: float) -> Iterator[tuple[Try, int]]:
        """Yield what has begun on a replica, and on which, with what begins now."""
        yield from self._begun
        self._begun.clear()
        for attempt, index in self._line.start(now * self._time_scale):
            self._begin(attempt, index, now)
            yield attempt, index

    def migrate(self, now: float) -> list[int]:
        """Let replies leave for other replicas, and return the replicas that they leave."""
        return sorted(self._migration.look(now * self._time_scale)) if self._migration else []

    def look_at(self, now: float) -> float | None:
        """Return when to ask `start` and `migrate` again, whatever ends; None: not until then."""
        model_now = now * self._time_scale
        looks = [self._line.due_at(model_now)]
        if self._migration is not None:
            looks.append(self._migration.due_at(model_now))
        due = [at for at in looks if at is not None]
        return min(due) / self._time_scale if due else None

    @property
    def migrations(self) -> int:
        """Return how many replies have gone on at another replica."""
        return 0 if self._migration is None else self._migration.moved

    def _fail(self, attempt: Try, now: float) -> None:
        self._experience.failed()
        self._failed.append(TryEnded(attempt, now, "unavailable"))

    def _begin(self, attempt: Try, index: int, now: float) -> None:
        outcome, profile, option = attempt.outcome, attempt.outcome.profile, attempt.option
        model_now = now * self._time_scale
        attempt.replica, attempt.began_at = index, now
        replica = self.replicas[index]
        due_at = model_now + due_left_s(profile, now) * self._time_scale
        attempt.ahead_s = replica.ahead_s(due_at)
        attempt.others_s = self._others_s(index, option.variant)
        attempt.mark = self._shares[index][option.variant].begin(model_now, profile.answers)
        output_tokens = outcome.reply_tokens
        if profile.answers > 1:
            all_replies = replace(profile, output_tokens=output_tokens)
            outcome.rounds = Answers.of(all_replies).rounds(option)
        if self._failure_rate and self._draw() < self._failure_rate:
            attempt.fails = True
            output_tokens = round(output_tokens * self._draw())
        attempt.output_tokens = min(outcome.output_tokens, profile.answers * output_tokens)
        name = str(self._count)
        self._count += 1
        self._tries[name] = attempt
        kept = replica.cached_tokens(option.variant, profile.session)
        outcome.cached_tokens = min(kept, outcome.prefix_tokens)
        job = Job(
            name,
            option.variant,
            outcome.input_tokens,
            output_tokens,
            outcome.cached_tokens,
            priority=0 if attempt.path == "direct" else 1,
            tpot_s=None if profile.tpot_s is None else profile.tpot_s * self._time_scale,
            due_at=due_at,
        )
        replica.submit_answers(job, profile.prompts, profile.replies, model_now, profile.session)

    def advance(self, index: int, now: float) -> Iterator[TryEnded]:
        """Yield the tries that ended on a replica up to ``now``."""
        scale = self._time_scale
        model_now = now * scale
        for event in self.replicas[index].advance(model_now):
            attempt = self._tries[event.id]
            if self._migration is not None:
                target = self._migration.note(event, model_now)
                if target is not None:
                    self._go_on(attempt, index, target, model_now)
            if isinstance(event, FirstToken | Moved):
                continue
            del self._tries[event.id]
            outcome, answers = attempt.outcome, attempt.outcome.profile.answers
            shares = self._shares[index][attempt.option.variant]
            share_s = attempt.share_s + shares.end(attempt.mark, model_now, answers)
            if isinstance(event, Cancelled):
                cut = (event.device_s, outcome.input_tokens, event.output_tokens)
                cost_usd = attempt.option.cut_cost_usd(*cut)
                self._charge(attempt, cost_usd, event.device_s, attempt.began_at, event.at / scale)
                outcome.tokens += outcome.input_tokens + event.output_tokens
                self._experience.failed()
                yield TryEnded(attempt, event.at / scale, "unavailable")
            elif isinstance(event, Completion):
                read = (outcome.input_tokens, attempt.output_tokens, outcome.cached_tokens)
                cost_usd = attempt.option.cost_usd(event.device_s, *read)
                span = event.first_token_at / scale, event.finished_at / scale
                cost_usd = self._charge(attempt, cost_usd, event.device_s, *span)
                outcome.tokens += outcome.input_tokens + attempt.output_tokens
                if attempt.fails:
                    self._experience.failed()
                    yield TryEnded(attempt, span[1], "server_error")
                    continue
                outcome.started_s = event.started_at / scale
                outcome.first_token_s, outcome.finished_s = span
                if not outcome.output_tokens:
                    outcome.first_token_s = None
                job = Job(
                    event.id,
                    attempt.option.variant,
                    outcome.input_tokens,
                    outcome.output_tokens,
                    outcome.cached_tokens,
                )
                tokens = outcome.input_tokens + outcome.reply_tokens
                self.replicas[index].keep(job.variant, outcome.profile.session, tokens)
                # What it takes beside the device was before it came here.
                began_at = attempt.began_at * scale
                sent_at = began_at - self._latency_s
                took = Measured(
                    event.first_token_at - sent_at,
                    event.finished_at - sent_at,
                    shared_by(model_now - began_at, share_s),
                    attempt.ahead_s,
                    attempt.others_s,
                )
                if answers == 1:
                    self._pace.learn(attempt.option, job, took, event.device_s)
                self._learn(attempt, cost_usd)
                yield TryEnded(attempt, span[1])
            else:
                yield TryEnded(attempt, event.at / scale, "memory")

    def _go_on(self, attempt: Try, source: int, target: int, model_now: float) -> None:
        """Note that a try has moved to another replica."""
        variant = attempt.option.variant
        answers = attempt.outcome.profile.answers
        attempt.share_s += self._shares[source][variant].end(attempt.mark, model_now, answers)
        attempt.mark = self._shares[target][variant].begin(model_now, answers)
        attempt.replica = target
        self._begun.append((attempt, target))

    def due_at(self, index: int) -> float | None:
        """Return when something ends on a replica next; None if nothing runs there."""
        model_at = self.replicas[index].accelerator.next_event_at()
        if model_at is None:
            return None
        at = model_at / self._time_scale
        # Rounded down, it would come before the event, again and again.
        return at if at * self._time_scale >= model_at else nextafter(at, inf)

    def _charge(
        self, attempt: Try, cost_usd: float, device_s: float, begin: float, end: float
    ) -> float:
        """Charge a try by the prices of its time, and return its cost by them."""
        outcome, option = attempt.outcome, attempt.option
        if option.tariff is not None:
            cost_usd *= price_factor(option, begin, end)
            self.moving_usd += cost_usd
            taken = footprint(option, device_s, begin, end)
            outcome.gco2 += 0.0 if taken is None else taken.gco2 or 0.0
        outcome.energy_wh += device_wh(option, device_s) or 0.0
        charged_usd = cost_usd * outcome.profile.price_factor
        outcome.cost_usd += charged_usd
        if option.rates is not None:
            self.tokens_usd += charged_usd
        return cost_usd

    def _learn(self, attempt: Try, cost_usd: float) -> None:
        outcome, profile = attempt.outcome, attempt.outcome.profile
        usage = Usage(outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens)
        self._experience.completed(profile, attempt.option.variant, usage)
        if profile.is_urgent and profile.answers == 1:
            self._fill.ended(is_kept=not (outcome.missed_ttft or outcome.missed_tpot))
        promised, finished_s, sent_s = outcome.promised, outcome.finished_s, outcome.dispatched_s
        if attempt.path != "direct" or promised is None or finished_s is None or sent_s is None:
            return
        finish_s = finished_s - profile.created_at
        got = Envelope(cost_usd * profile.price_factor, outcome.ttft_s, finish_s, outcome.tpot_s)
        elapsed_s = sent_s - profile.created_at
        self._experience.kept(profile, attempt.option.variant, promised, got, elapsed_s)

    def failed(self) -> Iterator[TryEnded]:
        """Yield the tries that failed before they reached a replica."""
        while self._failed:
            yield self._failed.popleft()

    def fail_line(self, now: float) -> None:
        """Fail what waits for a replica."""
        for attempt in self._line.clear():
            self._fail(attempt, now)

    def lose(self, index: int, now: float) -> None:
        """Fail all work that runs or waits on a replica, as if its model server ended."""
        for name in [n for n, attempt in self._tries.items() if attempt.replica == index]:
            self.replicas[index].cancel(name, now * self._time_scale)
        self.replicas[index].forget()

    def status(self, now: float) -> PoolStatus:
        """Return the heartbeat that the pool's worker would send now."""
        accelerators = [replica.accelerator for replica in self.replicas]
        first = next(iter(self.options.values()))
        backlog_s = sum(replica.backlog_s for replica in self.replicas) + self._line.prompt_s
        backlog_s /= len(self.replicas)
        tries = self._tries.values()
        requests = sum(replica.requests for replica in self.replicas)
        running = min(requests, sum(a.running for a in accelerators))
        return PoolStatus(
            pool=self.name,
            instance="model",
            at=now,
            state="down" if self.is_down else "draining" if self.is_draining else "up",
            interval_s=HEARTBEAT_S,
            device=first.device,
            region=first.region,
            slots=sum(o.max_batch * o.replicas for o in self.options.values()),
            running=running,
            queued=len(self._line) + requests - running,
            backlog_s=backlog_s / self._time_scale,
            server=ServerLoad(kv_usage=sum(a.kv_wanted for a in accelerators) / len(accelerators)),
            variants={
                variant: VariantStatus(
                    running=sum(a.running_of(variant) for a in accelerators),
                    queued=self._line.waiting_of(variant)
                    + sum(a.queued_of(variant) for a in accelerators),
                    speed=self._pace.speed(variant),
                    ttft_error=self._experience.ttft_error(variant),
                    tpot_error=self._experience.tpot_error(variant),
                    reuse=self._experience.reuse(variant),
                )
                for variant in self.options
            },
            output_lengths=self._experience.lengths.told(),
            failure_rate=self._experience.failure_rate,
            factors=self._pace.factors,
            factors_known=self._pace.factors_known,
            idle_replicas=sum(not replica.jobs for replica in self.replicas),
            urgent=len(self._line) + sum(each.outcome.profile.is_urgent for each in tries),
        )

    def _others_s(self, index: int, variant: str) -> float:
        accelerator = self.replicas[index].accelerator
        return sum(
            self._pace.step_s(option, accelerator.running_of(name))
            for name, option in self.options.items()
            if name != variant
        )

    def _replica_for(self, batch_id: str | None, ask: Ask, now: float) -> int:
        chosen = None if batch_id is None else self._batches.get(batch_id)
        if chosen is None:
            chosen = self._line.choose(ask, now)
            if batch_id is not None:
                self._batches.put(batch_id, chosen)
        return chosen
