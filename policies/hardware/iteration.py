"""Work of an accelerator: jobs, the lane of each model variant, and a run of iterations."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf
from operator import attrgetter

from policies.hardware.roofline import Roofline


@dataclass(frozen=True, slots=True)
class VariantLimits:
    """A model variant resident on a replica, and the most of its sequences that run together."""

    roofline: Roofline
    max_batch: int

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"VariantLimits.max_batch is {self.max_batch}: give 1 or more")


@dataclass(frozen=True, slots=True)
class Job:
    """One request. `cached_tokens` of the prompt need no prefill; the lowest `priority` goes first.

    Without output tokens (embeddings, classification) it is done when its prefill is. `tpot_s` is
    its SLO of the seconds from a token to the next, on average. `shared_tokens` of the prompt are
    in memory that another job has. `due_at` is when its first token is due.
    """

    id: str
    variant: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    priority: int = 0
    tpot_s: float | None = None
    shared_tokens: int = 0
    due_at: float = inf

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 0:
            raise ValueError(
                f"job {self.id!r} has {self.input_tokens} input and {self.output_tokens} output "
                f"tokens: give at least 1 and 0"
            )
        if not 0 <= self.cached_tokens <= self.input_tokens:
            raise ValueError(
                f"job {self.id!r} has {self.cached_tokens} cached tokens: give 0 to its "
                f"{self.input_tokens} input tokens"
            )


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The iteration that finished a job's prefill has ended: output token 1 is available."""

    id: str
    at: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A job is done; `device_s` is its share of the replica's busy time."""

    id: str
    started_at: float
    first_token_at: float
    finished_at: float
    device_s: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A job was removed and its memory is free; `device_s` was spent on it, for so many tokens."""

    id: str
    at: float
    device_s: float
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """A job has left a replica while it decoded, to go on at another with the tokens it has.

    Its times and ``device_s`` are those of all replicas it was on.
    """

    job: Job
    at: float
    written_tokens: int
    started_at: float
    first_token_at: float
    device_s: float

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


@dataclass(frozen=True, slots=True)
class Refused:
    """A job can never fit the replica's KV memory."""

    id: str
    at: float
    reason: str


Event = FirstToken | Completion | Cancelled | Moved | Refused


Key = tuple[int, float, int]
"""Which job goes first: by priority, when it is due, and order of arrival."""


class JobState:
    """An unfinished job: waiting, in prefill, or decoding."""

    __slots__ = (
        "admitted",
        "computed_tokens",
        "device_s",
        "due_from",
        "finish_step",
        "first_token_at",
        "job",
        "key",
        "kv_bytes",
        "lane",
        "reserved_tokens",
        "started_at",
        "step_due_s",
    )

    def __init__(self, job: Job, lane: "VariantQueue", order: int, due_at: float = inf) -> None:
        self.job = job
        self.lane = lane
        self.key: Key = (job.priority, due_at, order)
        self.reserved_tokens = job.input_tokens + job.output_tokens - job.shared_tokens
        self.kv_bytes = self.reserved_tokens * lane.roofline.kv_bytes_per_token
        # The last prompt token is always computed: its pass yields the first output token.
        self.computed_tokens = min(job.cached_tokens, job.input_tokens - 1)
        self.admitted = False
        self.started_at = 0.0
        self.first_token_at = 0.0
        self.finish_step = 0  # the lane's count of steps at its last token; 0 before decoding
        self.device_s = 0.0
        # Its token of the lane's next step is due at the sum of the first and steps of the second.
        self.due_from, self.step_due_s = inf, 0.0

    @property
    def prompt_left_tokens(self) -> int:
        """Prompt tokens still to be computed."""
        return self.job.input_tokens - self.computed_tokens

    @property
    def written_tokens(self) -> int:
        """Output tokens after the last run of iterations, of a job that has not ended."""
        return self.output_tokens_in(None, 0.0)

    def output_tokens_in(self, run: "IterationRun | None", now: float) -> int:
        """Return the output tokens there are at `now`, within a run that has not ended."""
        if not self.finish_step:
            return 0
        steps = self.lane.steps
        if run and self.lane in run.lanes:
            steps += run.steps_of(run.lanes.index(self.lane), run.ended_by(now))
        return self.job.output_tokens - max(0, self.finish_step - steps)


@dataclass(eq=False, slots=True)
class VariantQueue:
    """The jobs of one variant on a replica.

    A decode step updates no job: sequences join at one count of steps and leave at another, and
    each one's share of device time is the growth of `sequence_s` between the two.
    """

    index: int
    roofline: Roofline
    max_batch: int
    queue: list[tuple[Key, JobState]] = field(default_factory=list)  # heap by key
    prefilling: list[JobState] = field(default_factory=list)  # sorted by key
    decoding: list[tuple[int, int, JobState]] = field(default_factory=list)  # heap by finish step
    expected: dict[str, JobState] = field(default_factory=dict)  # by id: they decode elsewhere yet
    steps: int = 0
    tokens: int = 0  # decoded in those steps
    context_tokens: int = 0  # of the decoding sequences, together
    reserved_tokens: int = 0  # of all admitted jobs
    sequence_s: float = 0.0  # device time of a sequence that has decoded all the while

    @property
    def running(self) -> int:
        """Admitted jobs."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def places(self) -> int:
        """Places in the batch that are taken, or kept for jobs that are expected."""
        return self.running + len(self.expected)

    @property
    def head(self) -> JobState | None:
        """The next job to admit, if a place in the batch is free."""
        return self.queue[0][1] if self.queue and self.places < self.max_batch else None

    @property
    def steps_to_finish(self) -> int:
        """Decode steps until the first sequence is done."""
        return self.decoding[0][0] - self.steps

    def decode_s(self, steps: int) -> float:
        """Return the seconds of the next decode steps of all decoding sequences."""
        return self.roofline.decode_run_s(len(self.decoding), self.context_tokens, steps)

    def mixed_s(self, chunks: "list[Chunk]") -> float:
        """Return seconds of one iteration that computes `chunks` of prompts beside decodes."""
        tokens, kv_tokens = len(self.decoding), self.context_tokens
        pairs = float(kv_tokens)
        for state, chunk_tokens in chunks:
            tokens += chunk_tokens
            kv_tokens += state.computed_tokens
            pairs += chunk_tokens * (0.5 * chunk_tokens + state.computed_tokens)
        return self.roofline.iteration_s(tokens, kv_tokens, pairs, len(self.decoding), len(chunks))

    def token_due_at(self) -> float:
        """Return when a next token is due first, if each reply that has a TPOT ended with it."""
        steps = self.steps
        due = [state.due_from + state.step_due_s * steps for _, _, state in self.decoding]
        return min(due, default=inf)

    def wait(self, state: JobState) -> None:
        """Queue a job."""
        heappush(self.queue, (state.key, state))

    def admit(self, at: float) -> JobState:
        """Move the head of the queue to prefill and reserve its memory."""
        state = heappop(self.queue)[1]
        state.admitted, state.started_at = True, at
        insort(self.prefilling, state, key=attrgetter("key"))
        self.reserved_tokens += state.reserved_tokens
        return state

    def put_back(self, state: JobState) -> None:
        """Undo `admit`."""
        state.admitted = False
        self.prefilling.remove(state)
        self.reserved_tokens -= state.reserved_tokens
        self.wait(state)

    def decode(self, steps: int, sequence_s: float) -> None:
        """Advance each decoding sequence by `steps` tokens for `sequence_s` of device time."""
        self.steps += steps
        self.tokens += steps * len(self.decoding)
        self.context_tokens += steps * len(self.decoding)
        self.sequence_s += sequence_s

    def start_decoding(self, state: JobState) -> None:
        """Move a job from prefill, which has yielded its first output token, to decoding."""
        self.prefilling.remove(state)
        self._decode(state, 1)

    def expect(self, job: Job, order: int) -> None:
        """Keep a place and memory for a job that decodes elsewhere and will go on here."""
        state = JobState(job, self, order)
        state.admitted, state.computed_tokens = True, job.input_tokens
        self.reserved_tokens += state.reserved_tokens
        self.expected[job.id] = state

    def no_longer_expect(self, job_id: str) -> None:
        """Undo `expect`."""
        self.reserved_tokens -= self.expected.pop(job_id).reserved_tokens

    def go_on(self, moved: Moved) -> None:
        """Let a job decode that was expected."""
        state = self.expected.pop(moved.id)
        state.started_at, state.first_token_at = moved.started_at, moved.first_token_at
        state.device_s = moved.device_s
        self._decode(state, moved.written_tokens)

    def _decode(self, state: JobState, written_tokens: int) -> None:
        if not self.decoding:
            self.sequence_s = 0.0  # a short sum is an exact one
        state.device_s -= self.sequence_s
        state.finish_step = self.steps + state.job.output_tokens - written_tokens
        tpot_s = state.job.tpot_s
        if tpot_s is not None:
            state.due_from = state.first_token_at + tpot_s * (written_tokens - self.steps)
            state.step_due_s = tpot_s
        self.context_tokens += state.job.input_tokens + written_tokens
        heappush(self.decoding, (state.finish_step, state.key[2], state))

    def finish(self) -> Iterator[JobState]:
        """Remove the sequences that have decoded their last token."""
        while self.decoding and self.steps_to_finish <= 0:
            state = heappop(self.decoding)[2]
            self._stop_decoding(state)
            yield state

    def remove(self, state: JobState) -> None:
        """Remove a job in any state, and free its memory."""
        if not state.admitted and self.queue[-1][1] is state:
            self.queue.pop()
        elif not state.admitted:
            self.queue = [entry for entry in self.queue if entry[1] is not state]
            heapify(self.queue)
        elif state.finish_step:
            self.decoding = [entry for entry in self.decoding if entry[2] is not state]
            heapify(self.decoding)
            self._stop_decoding(state)
        else:
            self.prefilling.remove(state)
            self.reserved_tokens -= state.reserved_tokens

    def _stop_decoding(self, state: JobState) -> None:
        state.device_s += self.sequence_s
        steps_left = state.finish_step - self.steps
        self.context_tokens -= state.job.input_tokens + state.job.output_tokens - steps_left
        self.reserved_tokens -= state.reserved_tokens


Chunk = tuple[JobState, int]  # prompt tokens of a job that one iteration computes


@dataclass(slots=True)
class IterationRun:
    """Iterations of a replica that are computed together, since no event occurs before their end.

    The lanes take turns, one iteration each. A run with `chunks` is a single iteration.
    """

    lanes: list[VariantQueue]
    iterations: int
    started_at: float
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[JobState] = field(default_factory=list)
    elapsed_s: float = field(init=False)
    ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._measure()

    def steps_of(self, position: int, iterations: int) -> int:
        """Return how many of the first `iterations` belong to the lane at `position`."""
        rounds, rest = divmod(iterations, len(self.lanes))
        return rounds + (position < rest)

    def shorten(self, now: float) -> None:
        """End with the iteration that runs at `now`."""
        if not self.chunks:
            self.iterations = 1 + self.ended_by(now)
            self._measure()

    def ended_by(self, now: float) -> int:
        """Return how many of its iterations, without the last, have ended at `now`."""
        if self.chunks:
            return 0
        return bisect_left(
            range(1, self.iterations), now, key=lambda n: self.started_at + self._decode_s(n)
        )

    def _decode_s(self, iterations: int) -> float:
        return sum(
            lane.decode_s(self.steps_of(position, iterations))
            for position, lane in enumerate(self.lanes)
        )

    def _measure(self) -> None:
        self.elapsed_s = (
            self.lanes[0].mixed_s(self.chunks) if self.chunks else self._decode_s(self.iterations)
        )
        self.ends_at = self.started_at + self.elapsed_s
