"""A replica as its pool sees it, and the choice among the replicas of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.accelerator import Accelerator
from policies.iteration import Event, FirstToken, Job

# Of a latency SLO, the share that a replica may use up by what it knows when it takes a request;
# the rest is for what comes after.
TPOT_SHARE = 0.65
TTFT_SHARE = 0.5
# Seconds over which the share of prefill in a replica's time is averaged, and the most of it that
# counts: beyond it the replica takes no more beside what decodes.
PREFILL_MEMORY_S = 10.0
PREFILL_SHARE_MAX = 0.6


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs of a replica. Times in seconds, None where there is no such SLO."""

    variant: str
    input_tokens: int
    output_tokens: int
    prefill_s: float
    ttft_left_s: float | None = None
    tpot_s: float | None = None


@dataclass(eq=False, slots=True)
class Replica:
    """An accelerator, with what its scheduler remembers of the jobs on it."""

    accelerator: Accelerator
    backlog_s: float = 0.0
    """Prefills of the jobs that have no first token yet, in seconds."""
    _tpot_of: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)
    _prefilled_s: float = 0.0
    _prefilled_at: float = 0.0

    @property
    def jobs(self) -> int:
        """Jobs that run or wait."""
        return self.accelerator.running + self.accelerator.queued

    def submit(self, job: Job, ask: Ask, now: float) -> None:
        """Queue a job."""
        if ask.tpot_s is not None:
            self._tpot_of[job.id] = ask.tpot_s
        self._waiting[job.id] = ask.prefill_s
        self.backlog_s += ask.prefill_s
        self.accelerator.submit(job, now)

    def advance(self, now: float) -> list[Event]:
        """Return what happened up to ``now`` and was not yet told."""
        events = self.accelerator.advance(now)
        for event in events:
            prefill_s = self._waiting.pop(event.id, None)
            if prefill_s is not None:
                self.backlog_s = self.backlog_s - prefill_s if self._waiting else 0.0
                self._prefilled_s = self._recent_prefill_s(now) + prefill_s
                self._prefilled_at = now
            if not isinstance(event, FirstToken):
                self._tpot_of.pop(event.id, None)
        return events

    def can_take(self, ask: Ask, now: float) -> bool:
        """Tell whether the request, and what runs here already, would meet their SLOs."""
        accelerator = self.accelerator
        if accelerator.is_idle:
            return True
        if not accelerator.has_room(ask.variant, ask.input_tokens + ask.output_tokens):
            return False
        limits_s = [*self._tpot_of.values()]
        if ask.tpot_s is not None:
            limits_s.append(ask.tpot_s)
        round_s = accelerator.round_s(ask.variant, ask.input_tokens)
        if limits_s:
            share = (self._recent_prefill_s(now) + self.backlog_s) / PREFILL_MEMORY_S
            if share > PREFILL_SHARE_MAX or round_s / (1.0 - share) > TPOT_SHARE * min(limits_s):
                return False
        if ask.ttft_left_s is None:
            return True
        return self.backlog_s + ask.prefill_s + round_s <= TTFT_SHARE * ask.ttft_left_s

    def _recent_prefill_s(self, now: float) -> float:
        passed_s = max(0.0, now - self._prefilled_at)
        return self._prefilled_s * max(0.0, 1.0 - passed_s / PREFILL_MEMORY_S)


def choose_replica(replicas: Sequence[Replica], ask: Ask, now: float) -> int:
    """Return the index of the replica that should serve the request.

    Work gathers: a replica that decodes the variant already takes one more sequence for the price
    of its own tokens, one that is busy with another streams that variant's weights as well, and an
    idle one runs for it alone. So the fullest of the first kind that still meets every SLO on it
    is chosen, then of the second, then an idle one; where none can, the one with the least to do.
    """

    def rank(index: int) -> tuple[int, int, int]:
        accelerator = replicas[index].accelerator
        same = accelerator.running_of(ask.variant) + accelerator.queued_of(ask.variant)
        return (-same, -replicas[index].jobs, index)

    for index in sorted(range(len(replicas)), key=rank):
        if replicas[index].can_take(ask, now):
            return index
    return min(range(len(replicas)), key=lambda i: (replicas[i].backlog_s, replicas[i].jobs, i))
