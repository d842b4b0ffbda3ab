"""One replica that serves by continuous batching, in virtual time.

The model depends only on its calls: it holds no clock, and the caller passes the time. So the
simulated backend can follow it in real time and a backtest can run faster than real time.
"""

from collections.abc import Mapping
from math import inf

from policies.hardware.chunks import PREFILL_CHUNK_TOKENS, fitting_tokens, spare_s
from policies.hardware.iteration import (
    Cancelled,
    Chunk,
    Completion,
    Event,
    FirstToken,
    IterationRun,
    Job,
    JobState,
    Moved,
    Refused,
    VariantLimits,
    VariantQueue,
)
from policies.hardware.replica_load import ReplicaLoad

__all__ = [
    "Accelerator",
    "Cancelled",
    "Completion",
    "Event",
    "FirstToken",
    "Job",
    "Moved",
    "Refused",
    "VariantLimits",
]


class Accelerator(ReplicaLoad):
    """A replica on which one or more model variants are resident.

    One iteration runs at a time; variants that have work take turns. In an iteration all running
    sequences of its variant decode one token, and up to `prefill_chunk_tokens` of prompts are
    computed beside them (chunked prefill), with `keeps_tpot` no more than their TPOT allows. A job
    is admitted when a chunk can begin, in order of (priority, arrival), while its variant runs
    fewer than `max_batch` sequences and its whole KV need, input and output, fits beside what is
    reserved. The variants share that memory, and none takes what the first waiting job of another
    needs that comes before. With `keeps_tpot` what is due first comes before what arrived first,
    before what is left of a prompt under way too.

    The duration of an iteration is divided among its participants by tokens processed: each token
    passes through the same weights, which is most of the work. Contexts of unequal length are not
    told apart. The shares of all jobs sum to `busy_s`.

    Times are seconds from any origin; one near zero keeps the sums exact. A time before the last
    one seen counts as the last one seen. Events do not depend on how often `advance` and
    `next_event_at` are called.

    Raises:
        ValueError: no variants, replicas of different memory, or weights that do not fit.
    """

    def __init__(
        self,
        variants: Mapping[str, VariantLimits],
        *,
        prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
        keeps_tpot: bool = False,
    ) -> None:
        if prefill_chunk_tokens < 1:
            raise ValueError(f"prefill_chunk_tokens is {prefill_chunk_tokens}: give 1 or more")
        super().__init__(variants)
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._keeps_tpot = keeps_tpot
        self._jobs: dict[str, JobState] = {}
        self._cancelling: list[JobState] = []
        self._leaving: list[JobState] = []
        self._joining: list[Moved] = []
        self._events: list[Event] = []
        self._run: IterationRun | None = None
        self._turn = 0  # the lane whose iteration is next
        self._order = 0
        self._now = float("-inf")  # the last time seen
        self._free_at = self._now  # the end of the last finished iteration; `_now` when idle
        self._busy_s = 0.0

    def submit(self, job: Job, now: float) -> None:
        """Queue a job. It takes part from the next iteration that begins at `now` or later.

        Raises:
            ValueError: the variant is not resident, or a job of this id is not finished.
        """
        if job.variant not in self._lane_of:
            raise ValueError(
                f"job {job.id!r} asks for variant {job.variant!r}; this replica serves "
                f"{sorted(self._lane_of)}"
            )
        self._run_until(now)
        if job.id in self._jobs:
            raise ValueError(f"job {job.id!r} is already here: give each job its own id")
        lane = self._lane_of[job.variant]
        state = JobState(job, lane, self._order, job.due_at if self._keeps_tpot else inf)
        self._order += 1
        if state.kv_bytes > self._kv_capacity_bytes:
            reason = (
                f"needs KV memory of {state.kv_bytes:.3g} bytes for {state.reserved_tokens} "
                f"tokens; the replica has {self._kv_capacity_bytes:.3g}"
            )
            self._events.append(Refused(job.id, self._now, reason))
            return
        self._jobs[job.id] = state
        lane.wait(state)
        if self._run and (self._run.started_at == self._now or self._can_admit(lane)):
            self._cut()

    def cancel(self, job_id: str, now: float) -> bool:
        """Remove a job: at once while it waits, else at the end of the current iteration.

        A `Cancelled` event says when; a job that completes in that iteration stays completed.

        Returns:
            Whether the job was still unfinished.
        """
        self._run_until(now)
        state = self._jobs.get(job_id)
        if state is None:
            return False
        self._cut()
        if self._run and state.admitted:
            self._cancelling.append(state)
        else:
            self._take_out(state, self._now)
        return True

    def expect(self, job: Job, now: float) -> None:
        """Keep a place and memory for a job that decodes on another replica, until it moves here.

        The caller has seen that there is room.
        """
        self._run_until(now)
        self._lane_of[job.variant].expect(job, self._order)
        self._order += 1

    def no_longer_expect(self, job: Job, now: float) -> None:
        """Undo `expect`: the job has ended where it was."""
        self._run_until(now)
        self._lane_of[job.variant].no_longer_expect(job.id)
        self._cut()

    def send(self, job_id: str, now: float) -> None:
        """Let a decoding job leave at the end of the current iteration: `Moved` says when.

        One that completes or is cancelled by then does not.
        """
        self._run_until(now)
        state = self._jobs.get(job_id)
        if state is None:
            return
        self._cut()
        if self._run:
            self._leaving.append(state)
        else:
            self._let_go(state, self._now)

    def receive(self, moved: Moved, now: float) -> None:
        """Let a job that was expected take part from the next iteration on."""
        self._run_until(now)
        self._jobs[moved.id] = self._lane_of[moved.job.variant].expected[moved.id]
        self._cut()
        if self._run:
            self._joining.append(moved)
        else:
            self._lane_of[moved.job.variant].go_on(moved)

    def decoding_of(self, variant: str) -> list[tuple[Job, int]]:
        """Return the jobs of a variant that decode, each with its output tokens by now."""
        lane = self._lane_of[variant]
        found = [state for _, _, state in lane.decoding]
        return [(each.job, each.output_tokens_in(self._run, self._now)) for each in found]

    def advance(self, now: float) -> list[Event]:
        """Return all events up to `now` that were not yet returned, in order of time."""
        self._run_until(now)
        events, self._events = self._events, []
        return events

    def next_event_at(self) -> float | None:
        """Return the earliest time at which `advance` may have an event; None when idle.

        Some iterations end without an event (a chunk of a long prompt): then call again.
        """
        if self._events:
            return self._now
        if self._run is None:
            self._run = self._plan()
        return self._run.ends_at if self._run else None

    @property
    def busy_s(self) -> float:
        """Seconds of iterations up to the last time seen."""
        if self._run and self._run.started_at < self._now:
            return self._busy_s + self._now - self._run.started_at
        return self._busy_s

    @property
    def is_idle(self) -> bool:
        """True if no job runs or waits."""
        return not self._jobs

    def output_tokens_of(self, job_id: str, now: float) -> int:
        """Return a job's output tokens at `now`; 0 before the first, or if it is gone."""
        self._run_until(now)
        state = self._jobs.get(job_id)
        return state.output_tokens_in(self._run, self._now) if state else 0

    def _run_until(self, now: float) -> None:
        self._now = max(self._now, now)
        while True:
            if self._run is None and self._free_at < self._now:
                self._run = self._plan()
                if self._run is None:
                    self._free_at = self._now
            if self._run is None or self._run.ends_at > self._now:
                return
            self._settle(self._run)

    def _plan(self) -> IterationRun | None:
        """Return the next iterations up to an admission, a prefill or a finish."""
        decoding: list[VariantQueue] = []
        for lane in self._lanes[self._turn :] + self._lanes[: self._turn]:
            if lane.prefilling or self._can_admit(lane):
                if decoding:
                    return self._decode_run(decoding, len(decoding))
                return self._mixed_run(lane)
            if lane.decoding:
                decoding.append(lane)
        if not decoding:
            return None
        return self._decode_run(decoding, self._iterations_to_finish(decoding))

    def _decode_run(self, lanes: list[VariantQueue], iterations_max: int) -> IterationRun:
        iterations = min(iterations_max, self._iterations_to_finish(lanes))
        return IterationRun(lanes, iterations, self._free_at)

    def _iterations_to_finish(self, lanes: list[VariantQueue]) -> int:
        return min(
            (lane.steps_to_finish - 1) * len(lanes) + position + 1
            for position, lane in enumerate(lanes)
        )

    def _mixed_run(self, lane: VariantQueue) -> IterationRun:
        """Fill one iteration with prompt tokens, from those in prefill and from the queue."""
        budget_tokens = self._prefill_chunk_tokens
        chunks: list[Chunk] = []
        admitted: list[JobState] = []
        limit_s = spare_s(self._lanes, lane, self._free_at) if self._keeps_tpot else inf
        while budget_tokens > 0:
            started = lane.prefilling[len(chunks)] if len(chunks) < len(lane.prefilling) else None
            head = lane.head
            if head and (not started or head.key < started.key) and self._can_admit(lane):
                state = head
            elif started:
                state = started
            else:
                break
            left_tokens = min(budget_tokens, state.prompt_left_tokens)
            chunk_tokens = fitting_tokens(lane, chunks, state, left_tokens, limit_s)
            if not chunk_tokens:
                break
            if not state.admitted:
                admitted.append(lane.admit(self._free_at))
            chunks.append((state, chunk_tokens))
            budget_tokens -= chunk_tokens
        return IterationRun([lane], 1, self._free_at, chunks, admitted)

    def _cut(self) -> None:
        """End the run with the current iteration, so that the next can differ."""
        run = self._run
        if run is None:
            return
        if run.started_at < self._now:
            run.shorten(self._now)
            return
        # Planned by `next_event_at` but not begun: as if it had not been asked.
        for state in run.admitted:
            state.lane.put_back(state)
        self._run = None

    def _settle(self, run: IterationRun) -> None:
        """Account for a run that has ended."""
        self._run = None
        self._free_at = run.ends_at
        self._busy_s += run.elapsed_s
        self._turn = (run.lanes[(run.iterations - 1) % len(run.lanes)].index + 1) % len(self._lanes)
        if run.chunks:
            self._book_mixed(run)
        else:
            for position, lane in enumerate(run.lanes):
                steps = run.steps_of(position, run.iterations)
                lane.decode(steps, lane.decode_s(steps) / len(lane.decoding))
        for lane in run.lanes:
            for state in lane.finish():
                self._complete(state)
        for moved in self._joining:
            self._lane_of[moved.job.variant].go_on(moved)
        self._joining.clear()
        for state in self._cancelling:
            if self._jobs.get(state.job.id) is state:
                self._take_out(state, run.ends_at)
        self._cancelling.clear()
        for state in self._leaving:
            if self._jobs.get(state.job.id) is state:
                self._let_go(state, run.ends_at)
        self._leaving.clear()

    def _book_mixed(self, run: IterationRun) -> None:
        lane = run.lanes[0]
        tokens = len(lane.decoding) + sum(chunk_tokens for _, chunk_tokens in run.chunks)
        token_s = run.elapsed_s / tokens
        lane.decode(1, token_s)
        for state, chunk_tokens in run.chunks:
            state.computed_tokens += chunk_tokens
            state.device_s += chunk_tokens * token_s
            if state.prompt_left_tokens == 0:
                self._end_prefill(state)

    def _end_prefill(self, state: JobState) -> None:
        state.first_token_at = self._free_at
        if state.job.output_tokens > 0:
            self._events.append(FirstToken(state.job.id, self._free_at))
        if state.job.output_tokens > 1:
            state.lane.start_decoding(state)
        else:
            state.lane.remove(state)
            self._complete(state)

    def _complete(self, state: JobState) -> None:
        del self._jobs[state.job.id]
        times = (state.started_at, state.first_token_at, self._free_at)
        self._events.append(Completion(state.job.id, *times, state.device_s))

    def _let_go(self, state: JobState, at: float) -> None:
        written = self._remove(state)
        spent = (state.started_at, state.first_token_at, state.device_s)
        self._events.append(Moved(state.job, at, written, *spent))

    def _take_out(self, state: JobState, at: float) -> None:
        written = self._remove(state)
        self._events.append(Cancelled(state.job.id, at, state.device_s, written))

    def _remove(self, state: JobState) -> int:
        """Remove an unfinished job, and return the tokens that it has written."""
        del self._jobs[state.job.id]
        written = state.written_tokens
        state.lane.remove(state)
        return written
