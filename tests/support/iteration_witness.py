"""Runs of accelerators, iteration by iteration, as values of the bound's variables.

The rows of `shunter.backtest.bound_iterations` hold for every schedule. So the values that a run
gives to their variables keep all of them, and the run costs no less than the rows say.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import exact_instances
from backtest_cases import POLICY

from policies import Option, compile_options, parse_fleet
from policies.backtest.workload import Arrival, profiles_of
from policies.hardware.accelerator import (
    Accelerator,
    Completion,
    Event,
    FirstToken,
    Job,
    Moved,
    VariantLimits,
)
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from policies.hardware.iteration import IterationRun, JobState
from shunter.backtest.bound_times import TokenTimes, memory_share
from shunter.backtest.demand import Demand

REPLICAS = 2
# By so much SLOs are wider than what the run needs, in seconds: times are sums of many.
SLACK_S = 1e-6

# What an iteration was, nothing else tells.
_settle = Accelerator._settle


def one_option(
    max_batch: int,
    kv_tokens: int,
    prompt_overhead_s: float,
    active: float = 1.0,
    *,
    keeps_tpot: bool = False,
) -> Option:
    """Return an option of a small device, with so many places and tokens of memory.

    ``active`` is the share of the weights that one token touches.
    """
    fleet = parse_fleet(exact_instances.FLEET, "a test")
    (option,) = compile_options(fleet).by_pool["near"]
    roofline = option.roofline
    bytes_needed = roofline.weights_bytes + kv_tokens * roofline.kv_bytes_per_token
    roofline = replace(
        roofline,
        memory_bytes=bytes_needed / 0.9,
        active_weights_bytes=active * roofline.weights_bytes,
        active_parameters=active * roofline.active_parameters,
        prompt_overhead_s=prompt_overhead_s,
        sequence_overhead_s=prompt_overhead_s / 100,
        traffic_token_s=prompt_overhead_s / 10_000,
    )
    capacity = roofline.kv_capacity_tokens(roofline.weights_bytes)
    return replace(
        option,
        max_batch=max_batch,
        roofline=roofline,
        kv_capacity_tokens=capacity,
        replicas=2,
        keeps_tpot=keeps_tpot,
    )


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A request of a run, and when its replica gets it; one that doesn't count may be cancelled."""

    id: str
    created_at: float
    submitted_at: float
    input_tokens: int
    output_tokens: int
    replica: int
    priority: int
    counts: bool = True
    cancelled_at: float | None = None
    tpot_s: float | None = None


def some_requests(draw: random.Random, chunk: int, kv_tokens: int) -> list[RunRequest]:
    """Return requests with prompts of all lengths, many near the end of a chunk."""
    found = []
    for number in range(draw.choice([8, 40])):
        created_at = draw.uniform(0.0, draw.choice([0.1, 3.0]))
        tokens = draw.choice(
            [
                draw.randint(1, 300),
                draw.randint(300, 3 * chunk),
                max(1, draw.randint(1, 3) * chunk - draw.randint(-2, 40)),
            ]
        )
        reply = draw.choice([1, draw.randint(2, 30), draw.randint(100, 400)])
        tokens = min(tokens, kv_tokens - reply - 1)
        counts = draw.random() < 0.6
        if not counts and draw.random() < 0.7:
            tokens = draw.randint(1, 20)
        submitted_at = created_at + draw.choice([0.0, draw.uniform(0.0, 0.5)])
        gone = not counts and draw.random() < 0.2
        found.append(
            RunRequest(
                str(number),
                created_at,
                submitted_at,
                tokens,
                reply,
                draw.randrange(REPLICAS),
                draw.randrange(2),
                counts,
                submitted_at + draw.uniform(0.0, 1.0) if gone else None,
                draw.choice([None, 0.005, 0.02, 0.1]),
            )
        )
    return found


@dataclass(slots=True)
class Iteration:
    """One iteration: what counted requests had of it, and how long it took beside chunks' time."""

    ends_at: float
    seconds: float
    reads: list[tuple[str, int]]
    """Counted sequences that decoded, each with its context."""
    ended: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    """Counted prompts with a chunk in it that ends or doesn't end them."""
    prompt_s: float = 0.0
    chunks_s: float = 0.0
    """What all chunks take beside arithmetic and memory."""


@dataclass(slots=True)
class RunWitness:
    """What a run of requests was."""

    option: Option
    demands: dict[str, Demand]
    iterations: list[Iteration]
    busy_s: float
    moved: int = 0


class _Movers:
    """The replicas of a run, between which replies move as a random draw says."""

    def __init__(self, replicas: Sequence[Accelerator], draw: random.Random | None) -> None:
        self.replicas = replicas
        self.draw = draw
        self.where: dict[str, int] = {}
        self.done: dict[str, Completion] = {}
        self.moved = 0

    def see(self, events: Sequence[Event]) -> None:
        self.done |= {event.id: event for event in events if isinstance(event, Completion)}

    def move(self, variant: str, now: float) -> None:
        """Let some replies leave a replica at the end of its iteration, where there is room."""
        if self.draw is None or self.draw.random() < 0.5:
            return
        source = self.draw.randrange(REPLICAS)
        target = (source + 1) % REPLICAS
        here, there = self.replicas[source], self.replicas[target]
        self.see(here.advance(now))
        for job, _ in here.decoding_of(variant):
            # The move before took time.
            is_here = job in [each for each, _ in here.decoding_of(variant)]
            tokens = job.input_tokens + job.output_tokens
            if is_here and self.draw.random() < 0.5 and there.has_room(variant, tokens):
                there.expect(job, now)
                here.send(job.id, now)
                self._arrive(job, source, target, now)

    def _arrive(self, job: Job, source: int, target: int, now: float) -> None:
        here, there, at = self.replicas[source], self.replicas[target], now
        while True:
            events = here.advance(at)
            self.see(events)
            for event in events:
                if event.id == job.id and isinstance(event, Moved):
                    there.receive(event, at)
                    self.where[job.id] = target
                    self.moved += 1
                    return
                if event.id == job.id and not isinstance(event, FirstToken):
                    there.no_longer_expect(job, at)
                    return
            following = here.next_event_at()
            assert following is not None
            at = following


def witness(
    option: Option, asked: Sequence[RunRequest], draw: random.Random | None = None
) -> RunWitness:
    """Run requests; those that count keep SLOs that are as tight as the run allows.

    With a draw, replies move between the replicas.
    """
    counted = {each.id for each in asked if each.counts}
    iterations: list[Iteration] = []

    def settle(self: Accelerator, run: IterationRun) -> None:
        iterations.extend(_iterations(option, run, counted))
        _settle(self, run)

    limits = VariantLimits(option.roofline, option.max_batch)
    chunk = PREFILL_CHUNK_TOKENS
    replicas = [
        Accelerator(
            {option.variant: limits}, prefill_chunk_tokens=chunk, keeps_tpot=option.keeps_tpot
        )
        for _ in range(REPLICAS)
    ]
    movers = _Movers(replicas, draw)
    with patch.object(Accelerator, "_settle", settle):
        for at, each, is_new in _calls(asked):
            if is_new:
                tokens = (each.input_tokens, each.output_tokens)
                job = Job(
                    each.id, option.variant, *tokens, priority=each.priority, tpot_s=each.tpot_s
                )
                movers.where[each.id] = each.replica
                replicas[each.replica].submit(job, at)
            else:
                replicas[movers.where[each.id]].cancel(each.id, at)
            movers.move(option.variant, at)
        for replica in replicas:
            movers.see(replica.advance(1e5))
    demands = dict(_demands([each for each in asked if each.counts], movers.done))
    busy_s = sum(replica.busy_s for replica in replicas)
    return RunWitness(option, demands, iterations, busy_s, movers.moved)


def some_runs(seed: int, *, moves: bool = False) -> Iterator[RunWitness]:
    """Yield runs of small and large memories, batches and overheads, if asked with moves."""
    draw = random.Random(seed)
    for _ in range(6):
        kv_tokens = draw.choice([9_000, 60_000])
        places, beside_s, active = (
            draw.choice(of) for of in ([2, 4, 16], [0.0, 0.005], [1.0, 0.1])
        )
        keeps_tpot = draw.random() < 0.5
        option = one_option(places, kv_tokens, beside_s, active, keeps_tpot=keeps_tpot)
        asked = some_requests(draw, PREFILL_CHUNK_TOKENS, option.kv_capacity_tokens)
        if any(each.counts for each in asked):
            yield witness(option, asked, draw if moves else None)


def _calls(asked: Sequence[RunRequest]) -> Iterator[tuple[float, RunRequest, bool]]:
    calls = [(each.submitted_at, 0, each) for each in asked]
    calls += [(each.cancelled_at, 1, each) for each in asked if each.cancelled_at is not None]
    for at, order, each in sorted(calls, key=lambda call: call[:2]):
        yield at, each, order == 0


def _demands(
    asked: Sequence[RunRequest], done: Mapping[str, Completion]
) -> Iterator[tuple[str, Demand]]:
    arrivals = [
        Arrival(row, a.created_at, "chat", "yard-8b", a.input_tokens, a.output_tokens, None)
        for row, a in enumerate(asked)
    ]
    fleet = parse_fleet(exact_instances.FLEET, "a test")
    for each, profile in zip(asked, profiles_of(arrivals, fleet, POLICY), strict=True):
        end, steps = done[each.id], each.output_tokens - 1
        tight = replace(
            profile,
            ttft_s=end.first_token_at - each.created_at + SLACK_S,
            tpot_s=(end.finished_at - end.first_token_at) / steps + SLACK_S if steps else None,
            deadline=end.finished_at + SLACK_S,
        )
        yield each.id, Demand(tight, each.input_tokens, each.output_tokens)


def _iterations(option: Option, run: IterationRun, counted: set[str]) -> Iterator[Iteration]:
    """Yield the iterations of a run as they were."""
    times, (lane,) = TokenTimes.of(option), run.lanes
    running = [
        (state.job.id, state.job.input_tokens + state.written_tokens)
        for _, _, state in lane.decoding
        if state.job.id in counted
    ]
    if not run.chunks:
        ends = [run.started_at + lane.decode_s(step + 1) for step in range(run.iterations)]
        for step, ends_at in enumerate(ends):
            seconds = ends_at - (ends[step - 1] if step else run.started_at)
            yield Iteration(ends_at, seconds, [(name, read + step) for name, read in running])
        return
    beside_s = sum(times.prompt_s + tokens * times.traffic_s for _, tokens in run.chunks)
    found = Iteration(run.ends_at, run.elapsed_s - beside_s, running, chunks_s=beside_s)
    for state, tokens in run.chunks:
        if state.job.id in counted:
            chunks = found.ended if tokens == state.prompt_left_tokens else found.cut
            chunks.append(state.job.id)
            found.prompt_s += _arithmetic_s(times, state, tokens)
    yield found


def _arithmetic_s(times: TokenTimes, state: JobState, tokens: int) -> float:
    pairs = tokens * (0.5 * tokens + state.computed_tokens)
    return tokens * times.token_s + pairs * times.pair_s


def reserved(witness_of: RunWitness, iteration: Iteration) -> float:
    """Return the shares of the memory that an iteration's counted sequences have."""
    demands, option = witness_of.demands, witness_of.option
    return sum(memory_share(demands[name], option) for name, _ in iteration.reads)
