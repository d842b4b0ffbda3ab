"""The simulated accelerator: answers at the pace of its roofline."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from policies import Option
from policies.hardware.accelerator import (
    Cancelled,
    Completion,
    FirstToken,
    Job,
    Refused,
    VariantLimits,
)
from policies.hardware.answering import AnsweringReplica
from policies.hardware.constants import AS_DECLARED, Factors, corrected
from policies.hardware.device_time import DeviceShare
from policies.hardware.migration import Migration
from policies.hardware.pool_fill import PoolFill
from policies.hardware.pool_line import PoolLine, may_wait
from policies.hardware.prefix_cache import PrefixCache
from policies.hardware.replica import Ask, due_left_s
from policies.learning.device_constants import Measured
from policies.learning.device_speed import Pace, shared_by
from policies.scoring.slo import kept
from streams.engine.clock import Clock
from topics import Profile, Response, ServerLoad, VariantStatus
from topics.bounded_dict import BoundedDict
from workers.backends.base import INPUTS_MAX, Call, CallError, Load, Outcome
from workers.backends.simulated.responses import (
    body,
    choices_of,
    count_inputs,
    finish_reason,
    output_tokens,
    piece,
    prefix_tokens,
    usage_of,
)
from workers.backends.simulated.run import SimulatedRun, session_of

# Longer sleeps drift with the machine's clock; a new one is begun at least this often.
SLEEP_S_MAX = 1.0
# The longest wait for the iteration to end in which a call was cancelled.
TAKEN_OUT_S_MAX = 0.5
# Batches whose replica is remembered; far more than have members under way.
BATCHES_MAX = 4096
# Least time between two pieces of a streamed answer, each with all that was decoded meanwhile.
PIECE_S = 0.05
# Least time between two looks at the line, or at the replicas: a look costs tenths of it.
LOOK_S_MIN = 0.002
STREAMED = frozenset({"chat", "completions"})


class SimulatedBackend:
    """Continuous batching on each replica of a pool, in real time or ``time_scale`` times faster.

    Answers are well formed and have the right token counts; their text is meaningless. Each
    replica keeps the keys and values of sessions in memory that is free.
    """

    def __init__(
        self,
        options: Sequence[Option],
        clock: Clock,
        usual_tokens: Mapping[str, int] = MappingProxyType({}),
        factors: Factors = AS_DECLARED,
    ) -> None:
        """Take the pool's options, the usual reply length by class, and what its devices take."""
        limits = {
            o.variant: VariantLimits(corrected(o.roofline, factors), o.max_batch) for o in options
        }
        self._latency_s = options[0].latency_s * factors.first_token
        self._options = {o.variant: o for o in options}
        self._replicas = [
            AnsweringReplica(limits, PrefixCache(), keeps_tpot=options[0].keeps_tpot)
            for _ in range(options[0].replicas)
        ]
        # By replica, then by variant.
        self._shares = [{o.variant: DeviceShare(1) for o in options} for _ in self._replicas]
        self._time_scale = options[0].time_scale
        self._clock = clock
        self._usual_tokens = usual_tokens
        self._began_at = 0.0
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._runs: dict[str, SimulatedRun] = {}
        """By name, those that have begun and whose calls have not ended."""
        self._first: dict[str, asyncio.Event] = {}
        """By name, set when the first token of a streamed answer is there."""
        self._names = itertools.count()
        self._batches: BoundedDict[str, AnsweringReplica] = BoundedDict(BATCHES_MAX)
        self._changed = asyncio.Event()
        self._pace = Pace()
        self._fill = PoolFill()
        self._line: PoolLine[SimulatedRun] = PoolLine(self._replicas, self._fill)
        how = self._replicas, self._fill, LOOK_S_MIN * self._time_scale
        self._migration = Migration(*how) if options[0].migrates else None
        self._driver: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the driver of the devices."""
        # A time near zero keeps the sums of the model exact.
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._driver = asyncio.create_task(self._drive())
        self._driver.add_done_callback(self._fail_waiting)

    async def stop(self) -> None:
        """Stop; running calls are cancelled."""
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        for future in self._waiting.values():
            future.cancel()

    async def execute(self, call: Call) -> Outcome:
        """Run a request on the best replica; members of a batch run on the same one.

        One with a TTFT may wait in the line for its replica.
        """
        if self._is_still:
            raise RuntimeError("the simulated devices stand still: nothing would ever finish")
        if max(call.profile.answers, count_inputs(call.request)) > INPUTS_MAX:
            # Texts may be empty, and then no context limits them.
            message = f"a request has {INPUTS_MAX} texts at most, and as many answers"
            raise CallError("request_refused", message, retry="never")
        profile, variant = call.profile, call.placement.model_variant
        # A client may hint that there are none; the model computes one at least.
        input_tokens = max(1, profile.input_tokens)
        sent_at = self._model_now()
        if self._latency_s:
            # What a server takes beside the device: it comes first, so that an end stays an end.
            await asyncio.sleep(self._latency_s / self._time_scale)
        option = self._options[variant]
        room = min(option.context_tokens, option.kv_capacity_tokens) - profile.prompt_tokens
        tokens = output_tokens(call.request, profile, self._usual_tokens, room)
        ended = finish_reason(call.request, tokens, room)
        # Not the request's id: the same one may run again while its cancelled run still ends.
        run = SimulatedRun(str(next(self._names)), call, input_tokens, tokens, self._model_now())
        future = self._waiting[run.name] = self._loop.create_future()
        self._enter(run)
        try:
            streamed = self._streamed(run, future, ended) if tokens else None
            done = await (streamed or future)
        except asyncio.CancelledError:
            if run.has_begun:
                call.meter.add(*await self._taken_out(run))
                run.replica.keep(variant, session_of(profile), run.job.cached_tokens)
            raise
        finally:
            self._waiting.pop(run.name, None)
            self._runs.pop(run.name, None)
            ended_at, share_s = self._model_now(), 0.0
            if run.has_begun:
                share_s = run.leave(ended_at)
            else:
                self._line.leave(run)
        # The wait in the line is the pool's doing, not the devices'.
        sent_at += run.began_at - run.came_at
        took = Measured(
            done.first_token_at - sent_at,
            done.finished_at - sent_at,
            shared_by(ended_at - run.began_at, share_s),
            run.ahead_s,
            run.others_s,
        )
        if profile.answers == 1:
            self._pace.learn(self._options[variant], run.job, took, done.device_s)
        run.replica.keep(variant, session_of(profile), input_tokens + tokens)
        cached = run.job.cached_tokens
        # Asked once, so that no jitter of two clocks puts the end before the first token.
        origin_s = self._clock.now() - self._model_now() / self._time_scale
        answer = body(call.request, profile, variant, (tokens, cached), self._clock.now(), ended)
        outcome = Outcome(
            Response(200, answer),
            usage_of(profile, tokens, cached),
            started_at=origin_s + done.started_at / self._time_scale,
            first_token_at=origin_s + done.first_token_at / self._time_scale if tokens else None,
            finished_at=origin_s + done.finished_at / self._time_scale,
            device_s=done.device_s,
        )
        self._count_kept(profile, outcome, tokens)
        return outcome

    def _count_kept(self, profile: Profile, outcome: Outcome, tokens: int) -> None:
        """Tell the pool's fill whether a request with a latency SLO kept it."""
        if not profile.is_urgent or profile.answers > 1:
            return
        first_at, tpot_s = outcome.first_token_at, None
        if first_at is not None and tokens > 1:
            tpot_s = (outcome.finished_at - first_at) / (tokens - 1)
        found = kept(
            in_time=True,
            ttft_s=None if first_at is None else first_at - profile.created_at,
            ttft_max_s=profile.ttft_s,
            tpot_s=tpot_s,
            tpot_max_s=profile.tpot_s,
        )
        self._fill.ended(is_kept=found["all"])

    async def _streamed(
        self, run: SimulatedRun, done: asyncio.Future[Completion], ended: str
    ) -> Completion:
        """Tell the pieces of an answer as they are decoded, if that is wanted, and wait for it."""
        call = run.call
        if call.tell is None or call.profile.operation not in STREAMED:
            return await done
        first = self._first.setdefault(run.name, asyncio.Event())
        shown = choices_of(call.request, call.profile)
        sent = dict.fromkeys(shown, 0)
        what = (call.request, call.profile.operation, call.placement.model_variant)
        begins = asyncio.ensure_future(first.wait())
        either: set[asyncio.Future[Any]] = {begins, done}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            while not done.done():
                written = run.replica.written_of(run.name, self._model_now())
                for index, at in enumerate(shown):
                    if written[at] > sent[at]:
                        since = sent[at], written[at]
                        await call.tell(piece(*what, since, self._clock.now(), index=index))
                        sent[at] = written[at]
                await asyncio.wait({done}, timeout=PIECE_S)
            found = done.result()
            for index, at in enumerate(shown):
                since = sent[at], run.output_tokens
                await call.tell(piece(*what, since, self._clock.now(), ended, index))
        finally:
            begins.cancel()
            del self._first[run.name]
        return found

    async def _taken_out(self, run: SimulatedRun) -> tuple[float, int, int]:
        """Cancel a job, and return its device time and tokens: known when its iteration ends."""
        left = self._waiting[run.name] = self._loop.create_future()
        # It may have left its replica by now, and the driver not know it yet.
        self._advance(self._model_now())
        if not run.replica.cancel(run.name, self._model_now()) or self._is_still:
            return 0.0, 0, 0
        # What waited for its place is due sooner than the driver thinks.
        self._changed.set()
        try:
            async with asyncio.timeout(TAKEN_OUT_S_MAX):
                event = await left
        except TimeoutError:
            return 0.0, 0, 0
        written = event.output_tokens if isinstance(event, Cancelled) else 0
        return event.device_s, run.input_tokens if event.device_s else 0, written

    @property
    def _is_still(self) -> bool:
        return self._driver is None or self._driver.done()

    def _others_s(self, replica: AnsweringReplica, variant: str) -> float:
        """Return one iteration of every other variant that runs on a replica."""
        return sum(
            self._pace.step_s(option, replica.accelerator.running_of(name))
            for name, option in self._options.items()
            if name != variant
        )

    async def probe(self, variant: str) -> None:
        """Return at once: a simulated server never fails by itself."""

    def _enter(self, run: SimulatedRun) -> None:
        """Begin a call on the best replica, or let it wait in the line for one with room."""
        profile, batch_id = run.call.profile, run.call.placement.batch_id
        ask = Ask.of(
            profile,
            run.call.placement.model_variant,
            max(1, profile.prompt_tokens),
            session_of(profile),
            self._clock.now(),
            self._time_scale,
        )
        if may_wait(run.call.placement.path, profile.tier, ask):
            self._line.join(run, ask, run.came_at)
            self._start_line()
        else:
            self._begin(run, self._replica_for(batch_id, ask))
        self._changed.set()

    def _start_line(self) -> None:
        """Begin what waits in the line and may begin now."""
        for run, index in self._line.start(self._model_now()):
            self._begin(run, self._replicas[index])

    def _begin(self, run: SimulatedRun, replica: AnsweringReplica) -> None:
        call, variant, now = run.call, run.call.placement.model_variant, self._model_now()
        session = session_of(call.profile)
        cached = replica.cached_tokens(variant, session)
        cached = min(cached, prefix_tokens(call.request, run.input_tokens))
        tokens = run.input_tokens, run.output_tokens, cached
        due_at = now + due_left_s(call.profile, self._clock.now()) * self._time_scale
        run.job = Job(
            run.name,
            variant,
            *tokens,
            priority=-call.urgency,
            tpot_s=self._in_model(call.profile.tpot_s),
            due_at=due_at,
        )
        run.ahead_s, run.others_s = replica.ahead_s(due_at), self._others_s(replica, variant)
        run.enter(replica, self._shares[self._replicas.index(replica)][variant], now)
        run.has_begun, run.began_at, self._runs[run.name] = True, now, run
        counts = call.profile.prompts, call.profile.replies
        replica.submit_answers(run.job, *counts, now, session)

    def _replica_for(self, batch_id: str | None, ask: Ask) -> AnsweringReplica:
        """Return the replica to run on; a batch is sized for one device, spreading costs more."""
        chosen = None if batch_id is None else self._batches.get(batch_id)
        if chosen is None:
            chosen = self._replicas[self._line.choose(ask, self._model_now())]
            if batch_id is not None:
                self._batches.put(batch_id, chosen)
        return chosen

    def _in_model(self, wall_s: float | None) -> float | None:
        return None if wall_s is None else wall_s * self._time_scale

    def load(self) -> Load:
        """Return running and queued jobs, and the prefills that have not begun."""
        variants = {
            variant: VariantStatus(
                running=sum(r.accelerator.running_of(variant) for r in self._replicas),
                queued=self._line.waiting_of(variant)
                + sum(r.accelerator.queued_of(variant) for r in self._replicas),
                speed=self._pace.speed(variant),
                speed_known=self._pace.known(variant),
            )
            for variant in self._options
        }
        backlog_s = sum(r.backlog_s for r in self._replicas) + self._line.prompt_s
        backlog_s /= len(self._replicas) * self._time_scale
        kv_used = sum(r.accelerator.kv_wanted for r in self._replicas) / len(self._replicas)
        server = ServerLoad(kv_usage=round(kv_used, 4))
        idle = sum(not r.jobs for r in self._replicas)
        pace, moved = self._pace, self._migration.moved if self._migration else None
        return Load(backlog_s, variants, server, pace.factors, pace.factors_known, idle, moved)

    def _fail_waiting(self, driver: asyncio.Task[None]) -> None:
        """Fail every call with the error that ended the driver; nothing else would."""
        failure = None if driver.cancelled() else driver.exception()
        if failure is None:
            return
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(failure)

    async def _drive(self) -> None:
        while True:
            self._advance(self._model_now())
            self._start_line()
            now = self._model_now()
            if self._migration is not None:
                self._migration.look(now)
            due = [r.accelerator.next_event_at() for r in self._replicas]
            if self._migration is not None:
                due.append(self._migration.due_at(now))
            now = self._model_now()
            if (look_at := self._line.due_at(now)) is not None:
                due.append(max(look_at, now + LOOK_S_MIN * self._time_scale))
            wait_s = SLEEP_S_MAX
            if upcoming := [at for at in due if at is not None]:
                wait_s = max(0.0, (min(upcoming) - self._model_now()) / self._time_scale)
            self._changed.clear()
            try:
                async with asyncio.timeout(min(wait_s, SLEEP_S_MAX)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _advance(self, now: float) -> None:
        """Let the devices run up to now, and tell what has happened on them."""
        for replica in self._replicas:
            for event in replica.advance(now):
                target = None if self._migration is None else self._migration.note(event, now)
                if target is not None and (run := self._runs.get(event.id)) is not None:
                    variant = run.call.placement.model_variant
                    run.enter(self._replicas[target], self._shares[target][variant], now)
                self._tell(event)

    def _tell(self, event: object) -> None:
        if isinstance(event, FirstToken) and (first := self._first.get(event.id)) is not None:
            first.set()
        if not isinstance(event, Completion | Refused | Cancelled):
            return
        future = self._waiting.get(event.id)
        if future is None or future.done():
            return
        if isinstance(event, Refused):
            future.set_exception(CallError("memory", event.reason, retry="elsewhere"))
        else:
            future.set_result(event)

    def _model_now(self) -> float:
        return (self._loop.time() - self._began_at) * self._time_scale
