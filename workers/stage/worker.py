"""The worker: takes the requests of a pool, runs them, and commits each as it finishes.

Requests finish out of order. Progress is the lowest unfinished offset and the finished ones above
it, so that a successor repeats only requests without a result. Results, evidence and progress are
one transaction.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

from policies import Option, Options, Policy, same_hardware
from policies.autoscaling import device_s
from policies.batching.fair_queue import ShareOf
from streams.cancellation.index import Cancellations, message_of
from streams.config.active_policy import DecisionContext
from streams.engine.clock import Clock
from streams.engine.log import Log, LogError, Outgoing, Partition, Record
from streams.engine.stage import Effect, TransactionPlan
from streams.engine.unexpected_errors import is_asked_for
from streams.evidence.records import EvidenceWriter
from topics import Progress
from workers.backends.base import CallError
from workers.resilience.attempts import Attempts
from workers.stage.admission import outside
from workers.stage.backlog_estimate import BacklogEstimate
from workers.stage.chunks import Streams
from workers.stage.outcomes import OutcomeWriter, Task
from workers.stage.partition_state import InFlight, Lane
from workers.stage.routed_request import RoutedRequest
from workers.stage.start_limiter import StartLimiter
from workers.stage.wait_queue import WaitQueue

# How soon a finished request is looked for while any runs: in a part of the time that they take.
FINISH_POLL_S_MIN, FINISH_POLL_S_MAX = 0.001, 0.01
FINISH_POLL_PART = 0.1
# With this many running, results of a partition are committed together, no more often than this,
# and not in a transaction for every one or two of them.
BUSY_RUNNING = 100
COMMIT_EVERY_S = 0.05
# Offsets finished above the lowest open one that a partition may have: progress lists them, some
# 80 kB then in each transaction. Behind one request that takes so long the partition waits.
FINISHED_MAX = 8192
# Batch work may take this share of what a worker holds; the rest stays free for direct work.
BATCH_SHARE = 0.5
# Tier `priority`, other direct work, batches (`urgency_of`).
URGENCIES = (1, 0, -1)


class Worker:
    """The stage from the two lanes of a pool to results.

    It takes no more while ``in_flight_max`` requests, or ``in_flight_bytes_max`` of received bytes,
    have no visible result.
    """

    accumulates = True

    def __init__(
        self,
        pool: str,
        options: Sequence[Option],
        attempts: Attempts,
        evidence_writer: EvidenceWriter,
        ending: OutcomeWriter,
        clock: Clock,
        cancellations: Cancellations,
        streams: Streams,
        *,
        in_flight_max: int,
        in_flight_bytes_max: int,
        share_of: ShareOf = lambda _tenant: 1.0,
    ) -> None:
        self._pool = pool
        self._options = {option.variant: option for option in options}
        self._slots = {o.variant: o.max_batch * o.replicas for o in options}
        self._attempts = attempts
        self._evidence_writer = evidence_writer
        self._ending = ending
        self._clock = clock
        self._cancellations = cancellations
        self._streams = streams
        cancellations.tell(self._cancel)
        self.in_flight_max = in_flight_max
        self._in_flight_bytes_max = in_flight_bytes_max
        self._direct_topic = evidence_writer.catalogue.pool_lane(pool, "direct")
        self._batch_topic = evidence_writer.catalogue.pool_lane(pool, "batch")
        self._lanes: dict[Partition, Lane] = {}
        self._in_flight = InFlight()
        self._waiting: dict[tuple[str, int], WaitQueue[tuple[Lane, Task]]]
        self._waiting = defaultdict(lambda: WaitQueue(share_of))
        self._running: dict[str, int] = {}
        self._runs: dict[asyncio.Task[None], tuple[Lane, Task]] = {}
        self._cancelled: set[asyncio.Task[None]] = set()
        self._policy: Policy | None = None
        self.fleet: Options | None = None
        """The fleet that it runs by, once it has terms."""
        self._pace = StartLimiter()
        self.backlog = BacklogEstimate(options, clock)
        self._starting_later: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        self.is_draining = False

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._evidence_writer.catalogue.worker_group(self._pool)

    @property
    def topics(self) -> Sequence[str]:
        """Both lanes of the pool."""
        return (self._direct_topic, self._batch_topic)

    @property
    def option(self) -> Option:
        """The first of what it serves, which all share device and region with."""
        return next(iter(self._options.values()))

    @property
    def precisions(self) -> dict[str, str]:
        """The precision of each variant."""
        return {name: option.precision for name, option in self._options.items()}

    def take_context(self, terms: DecisionContext) -> None:
        """Adopt a policy and a fleet. Only between two steps.

        A fleet without the pool, or with other hardware behind it, is not that of this worker: its
        evidence goes on to name the one that it runs by.
        """
        here = terms.situation
        served = here.options.by_pool.get(self._pool, ())
        if not same_hardware(served, self._options.values()):
            return
        self._policy, self.fleet = here.policy, here.options
        self._options = {option.variant: option for option in served}
        self._evidence_writer = terms.evidence_writer
        self._attempts.attempts_max = here.policy.attempts_max
        self._ending = self._ending.under(terms.evidence_writer, here.policy.attempts_max)

    @property
    def slots(self) -> int:
        """Requests that can run at once."""
        return sum(self._slots.values())

    @property
    def running(self) -> int:
        """Number of running requests."""
        return len(self._runs)

    @property
    def queued(self) -> int:
        """Number of taken requests that do not run yet."""
        return sum(map(len, self._waiting.values()))

    def queued_of(self, variant: str) -> int:
        """Return the number of answers of one variant that wait here."""
        waiting = chain(*(each for (name, _), each in self._waiting.items() if name == variant))
        return sum(task.answers for _, task in waiting)

    @property
    def queued_prefill_s(self) -> float:
        """Prefill time of the queued requests, per replica, in seconds."""
        return sum(
            self._prefill_s(self._options[variant], task)
            for (variant, _), waiting in self._waiting.items()
            for _, task in waiting
        )

    @staticmethod
    def _prefill_s(option: Option, task: Task) -> float:
        return task.prefill_s(option) / (option.replicas * option.time_scale)

    @property
    def urgent(self) -> int:
        """Number of requests with an SLO of TTFT or TPOT that wait or run here."""
        return sum(task.routed.profile.is_urgent for task in self._open())

    def unfinished(self) -> Iterator[tuple[float, float]]:
        """Yield device time and deadline of each request here; one that runs counts in full."""
        for routed in (task.routed for task in self._open()):
            yield device_s(routed.profile, self._options[routed.variant]), routed.profile.deadline

    def _open(self) -> Iterator[Task]:
        entries = chain(*self._waiting.values(), self._runs.values())
        return (task for _, task in entries)

    @property
    def has_open(self) -> bool:
        """Return True if any request runs or waits to be committed."""
        return self.running > 0 or any(lane.ready for lane in self._lanes.values())

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Restore the offsets that a predecessor finished above its lowest open request."""
        known = progress or Progress(0)
        lane = self._lanes[partition] = Lane(known.next_offset, in_flight=self._in_flight)
        lane.finished.update(known.finished)

    def forget(self, partition: Partition) -> None:
        """Stop running requests of a lost partition; its new owner runs them again."""
        lane = self._lanes.pop(partition, None)
        if lane is None:
            return
        for waiting in self._waiting.values():
            waiting.drop(lambda entry: entry[0] is lane)
        for task in lane.tasks:
            task.cancel()
        lane.let_go()

    def wants(self, partition: Partition) -> bool:
        """Return True if there is room: direct work may use all, batch work only its share."""
        lane = self._lanes.get(partition)
        if self.is_draining or (lane is not None and len(lane.finished) >= FINISHED_MAX):
            return False
        share = BATCH_SHARE if partition.topic == self._batch_topic else 1.0
        return (
            self._in_flight.count < max(1, int(self.in_flight_max * share))
            and self._in_flight.bytes < self._in_flight_bytes_max * share
        )

    def idle_s(self) -> float:
        """Return the seconds until a finished request may be ready to commit."""
        now = asyncio.get_running_loop().time()
        waits = [self._commit_in_s(lane, now) for lane in self._lanes.values() if lane.ready]
        if waits or not self.running:
            return min(waits, default=float("inf"))
        part_s = self._pace.call_s * FINISH_POLL_PART
        return min(max(part_s, FINISH_POLL_S_MIN), FINISH_POLL_S_MAX)

    def _commit_in_s(self, lane: Lane, now: float) -> float:
        is_busy = self.running > BUSY_RUNNING and not self.is_draining
        return max(0.0, lane.commit_at - now) if is_busy else 0.0

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Take records, start requests that can run, and return the finished ones."""
        if self._failure is not None:
            raise LogError("a request could not be ended") from self._failure
        lane = self._lanes[partition]
        for record in records:
            self._take(lane, record)
        self._start_waiting()
        now = asyncio.get_running_loop().time()
        if not lane.ready or self._commit_in_s(lane, now) > 0:
            return None
        lane.commit_at = now + COMMIT_EVERY_S
        ready, lane.ready = lane.ready, []
        lane.committing = [offset for offset, _ in ready]
        return TransactionPlan(lane.progress(lane.committing), [effect for _, effect in ready])

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """Mark the offsets of visible results as finished."""
        lane = self._lanes[partition]
        lane.committed(work.progress.next_offset)

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """End a request whose result Kafka refuses (too large, for example) with a failure."""
        if not isinstance(effect.subject, Task):
            raise LogError(f"{record.topic} refused a record: {error}") from error
        code = "result_refused"
        message = f"{record.topic} refused the answer: {error}"
        failure = CallError(code, message, retry="never")
        ended = self._ending.failed(effect.subject, failure, self._clock.now())
        ended.is_dead_letter = True
        return [ended]

    def _take(self, lane: Lane, record: Record) -> None:
        offsets, lane.next_offset = record.offset + 1 - lane.next_offset, record.offset + 1
        if record.offset in lane.finished:
            return
        lane.take(record)
        try:
            self._admit(lane, record, offsets)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            self._set_aside(lane, record, error)

    def _set_aside(self, lane: Lane, record: Record, error: BaseException) -> None:
        now = self._clock.now()
        letter = self._evidence_writer.set_aside(record, error, now, is_accepted=True)
        lane.ready.append((record.offset, letter))

    def _admit(self, lane: Lane, record: Record, offsets: int) -> None:
        task = self._read(record)
        if self._cancellations.find(task.routed.profile.id) is not None:
            self._end_cancelled(lane, task)
            return
        error = outside(task.routed, self._options, self._policy)
        if error is not None:
            effect = self._ending.failed(task, error, self._clock.now())
            lane.ready.append((record.offset, effect))
            return
        self.backlog.took(record, offsets, task.routed.profile, self._options[task.routed.variant])
        if task.routed.is_direct:
            self.backlog.transport.learn(self._clock.now() - task.routed.sent_at)
        key = (task.routed.variant, task.routed.urgency)
        self._waiting[key].add(task.routed.profile.tenant, (lane, task))

    def _read(self, record: Record) -> Task:
        routed = RoutedRequest.of(record)
        if routed.request.body.get("stream") is not True or routed.profile.is_background:
            return Task(routed)
        stream = self._streams.open(routed.profile, routed.record.trace_id, routed.placement)
        return Task(routed, stream)

    def _cancel(self, request_id: str) -> None:
        """End a cancelled request, if it waits or runs here."""
        for waiting in self._waiting.values():
            for lane, task in waiting.drop(lambda entry: entry[1].routed.profile.id == request_id):
                self._end_cancelled(lane, task)
        for running, (_, task) in self._runs.items():
            # What has its answer already keeps it.
            if task.routed.profile.id == request_id and running.cancel():
                self._cancelled.add(running)

    def _end_cancelled(self, lane: Lane, task: Task) -> None:
        message = message_of(self._cancellations.find(task.routed.profile.id))
        effect = self._ending.cancelled(task, message, self._clock.now())
        lane.ready.append((task.routed.record.offset, effect))

    def _start_waiting(self) -> None:
        """Start requests that fit: for each variant the most urgent first, tenants in turn."""
        if self.is_draining:
            return
        for variant, slots in self._slots.items():
            for urgency in URGENCIES:
                waiting = self._waiting[variant, urgency]
                while waiting and self._may_start(variant, slots):
                    lane, task = waiting.take()
                    began_at, option = self._clock.now(), self._options[variant]
                    task = task.begun(began_at, option)
                    self._running[variant] = self._running.get(variant, 0) + task.answers
                    running = asyncio.create_task(self._run(lane, task))
                    lane.tasks.add(running)
                    self._runs[running] = (lane, task)
                    running.add_done_callback(partial(self._ended, lane, variant))

    def _may_start(self, variant: str, slots: int) -> bool:
        if not self._attempts.is_closed(variant):
            # What an open circuit sends elsewhere takes no place at the server.
            return True
        if self._running.get(variant, 0) >= slots or self._starting_later is not None:
            return False
        loop = asyncio.get_running_loop()
        wait_s = self._pace.take(loop.time(), slots)
        if wait_s > 0:
            self._starting_later = loop.call_later(wait_s, self._start_later)
        return wait_s == 0

    def _start_later(self) -> None:
        self._starting_later = None
        self._start_waiting()

    def _ended(self, lane: Lane, variant: str, running: asyncio.Task[None]) -> None:
        # A callback, because a task that is cancelled before its first step runs no `finally`.
        lane.tasks.discard(running)
        _, task = self._runs.pop(running)
        self._running[variant] -= task.answers
        if task.began_at is not None:
            self._pace.ended(self._clock.now() - task.began_at)
        is_by_client = running in self._cancelled
        self._cancelled.discard(running)
        if running.cancelled() and is_by_client:
            self._end_cancelled(lane, task)
        elif not running.cancelled():
            # What could not even be set aside is a successor's.
            self._failure = self._failure or running.exception()
            # What is cancelled makes room too, but perhaps all of it is being stopped; if not, the
            # next step starts others.
            self._start_waiting()

    async def _run(self, lane: Lane, task: Task) -> None:
        record = task.routed.record
        try:
            effect = await self._execute(task)
            lane.ready.append((record.offset, effect))
        except (Exception, asyncio.CancelledError) as error:
            if is_asked_for(error):
                raise
            # No request ends a worker, or stays open because nobody cancelled it.
            self._set_aside(lane, record, error)

    async def _execute(self, task: Task) -> Effect:
        # By the terms that it begins under: its evidence names these, whatever comes meanwhile.
        ending, deadline = self._ending, task.routed.profile.deadline
        if self._clock.now() >= deadline:
            return ending.expired(task, self._clock.now())
        option = self._options[task.routed.variant]
        try:
            outcome = await self._attempts.run(task.call(), option)
        except CallError as error:
            now = self._clock.now()
            if error.retry != "never" and now >= deadline:
                return ending.expired(task, now, error)
            return ending.failed(task, error, now)
        finally:
            if task.stream is not None:
                await task.stream.finish()
        comparison = await ending.compared(task, outcome, option)
        return ending.completed(task, outcome, option, comparison)
