"""The prompts on a replica that have no first token yet."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from policies.hardware.iteration import Job
from policies.hardware.roofline import Roofline

# Of the time until a waiting prompt is due, the share that it and those before it may take, so that
# others may go before it: decode steps take time as well. By replays of the open trace at rate 10
# on 8 replicas, with 0.3 to 0.7.
DUE_SHARE = 0.5


@dataclass(slots=True)
class WaitingPrompts:
    """The prompts of one variant that have no first token yet."""

    roofline: Roofline
    short: int = 0
    short_tokens: int = 0
    long_tokens: int = 0
    long_s: float = 0.0

    def add(self, tokens: int, sign: int = 1) -> None:
        """Count a prompt; with -1 as sign it no longer counts."""
        if tokens <= PREFILL_CHUNK_TOKENS:
            self.short += sign
            self.short_tokens += sign * tokens
        else:
            self.long_tokens += sign * tokens
            self.long_s += sign * self.roofline.prefill_s(tokens)

    def seconds(self) -> float:
        """Return their time: short prompts share chunks, long ones attend to themselves."""
        return (self.long_s if self.long_tokens else 0.0) + _chunked_s(
            self.roofline, self.short_tokens, self.short
        )

    def chunks(self) -> int:
        """Return their number of iterations."""
        return -(-(self.short_tokens + self.long_tokens) // PREFILL_CHUNK_TOKENS)


class PromptQueue:
    """The prompts of all variants on a replica that have no first token yet. Times are seconds."""

    def __init__(self, rooflines: Mapping[str, Roofline], *, is_by_due: bool) -> None:
        """Take the variants; ``is_by_due``: what is due first goes first, not what came first."""
        self._is_by_due = is_by_due
        self._jobs: dict[str, Job] = {}
        self._of = {name: WaitingPrompts(roofline) for name, roofline in rooflines.items()}

    def add(self, job: Job) -> None:
        """Count a job's prompt."""
        self._jobs[job.id] = job
        self._of[job.variant].add(computed_tokens(job))

    def take(self, job_id: str) -> Job | None:
        """Count a job's prompt no longer, and return the job; None if it doesn't wait."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._of[job.variant].add(computed_tokens(job), -1)
        return job

    @property
    def seconds(self) -> float:
        """The time of all of them."""
        return _total_s(self._of) if self._jobs else 0.0

    def before(self, due_at: float) -> Mapping[str, WaitingPrompts]:
        """Return those that are computed before one that is due then, by variant."""
        later = self._later(due_at)
        if not later:
            return self._of
        found = {name: copy(each) for name, each in self._of.items()}
        for job in later:
            found[job.variant].add(computed_tokens(job), -1)
        return found

    def before_s(self, due_at: float) -> float:
        """Return the time of those that are computed before one that is due then."""
        return _total_s(self.before(due_at)) if self._jobs else 0.0

    def leaves_time(self, due_at: float, own_s: float, now: float) -> bool:
        """Return True if those that are due later have the time for one that is due then.

        Args:
            due_at: when it is due.
            own_s: the time of its prompt.
            now: the time.
        """
        later = sorted(self._later(due_at), key=lambda job: (job.due_at, job.id))
        if not later:
            return True
        work_s = self.before_s(due_at) + own_s
        for job in later:
            work_s += self._of[job.variant].roofline.prefill_s(computed_tokens(job))
            if work_s > DUE_SHARE * (job.due_at - now):
                return False
        return True

    def _later(self, due_at: float) -> list[Job]:
        if not self._is_by_due:
            return []
        return [job for job in self._jobs.values() if job.due_at > due_at]


def computed_tokens(job: Job) -> int:
    """Return the tokens of a job's prompt that are computed."""
    return max(1, job.input_tokens - job.cached_tokens)


def _total_s(prompts: Mapping[str, WaitingPrompts]) -> float:
    return sum(each.seconds() for each in prompts.values())


def _chunked_s(roofline: Roofline, tokens: int, prompts: int) -> float:
    full, rest = divmod(tokens, PREFILL_CHUNK_TOKENS)
    full_s = full * roofline.prefill_s(PREFILL_CHUNK_TOKENS) if full else 0.0
    # Each chunk has the overhead of one prompt.
    shared_s = max(0, prompts - full - (rest > 0)) * roofline.prompt_overhead_s
    return full_s + (roofline.prefill_s(rest) if rest else 0.0) + shared_s
