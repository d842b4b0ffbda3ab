"""A replica of a pool, and what it can take."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from policies.hardware.accelerator import Accelerator, VariantLimits
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS, SHORT_CHUNK_TOKENS
from policies.hardware.iteration import Event, FirstToken, Job
from policies.hardware.prefix_cache import PrefixCache
from policies.hardware.prompts import PromptQueue
from policies.hardware.roofline import Roofline
from topics import Profile

# Of a latency SLO, the share that a replica may use up by what it knows when it takes a request;
# the rest is for what comes after. Chosen by backtests of the open trace at rates 1, 10 and 50.
TPOT_SHARE = 0.65
TTFT_SHARE = 0.5
# Seconds over which the share of prompts in a replica's time is told, past and ahead, and the most
# of it beside which a replica that decodes takes more. What lies ahead is computed at a stretch, in
# which a reply of some tokens is over: by replays with 5, 3, 2 and 1 s.
PREFILL_MEMORY_S = 3.0
PREFILL_SHARE_MAX = 0.6
# The same where chunks keep the TPOT of what decodes: by replays of the open trace and bursty ones.
KEPT_TPOT_PREFILL_SHARE_MAX = 0.8


class FillLimits(NamedTuple):
    """The fill up to which a replica takes a request: shares of SLOs, and of its time.

    Where chunks keep the TPOT of what decodes, prompts may take all of its time while fewer than
    ``ahead_s`` seconds of them wait there.
    """

    tpot_share: float
    ttft_share: float
    prefill_share_max: float
    ahead_s: float = 0.0


USUAL = FillLimits(TPOT_SHARE, TTFT_SHARE, PREFILL_SHARE_MAX)
# The same where the replica keeps that share of a request's prompt.
KEPT_SHARE, KEPT_PREFILL_SHARE_MAX = 0.5, 0.9
# What gives way first was not used for the longest time: so much of the usual chance it has left
# to be used again. By backtests of agents' and of Mooncake's sessions.
OLDEST_USED_SHARE = 0.25
# A decode step of one sequence alone streams all weights; of that, what one pays that joins a
# replica of another variant, which would be busy anyway, or others of its own, who share it.
SHARED_STREAM = 0.5
# Of a replica's places for a variant, the share whose use anywhere in the pool makes the variant
# worth a replica of its own.
OWN_REPLICA_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Ask:
    """A request's needs of a replica. Times in seconds, None if there is no such SLO.

    ``answer_left_s`` is left until the deadline. ``due_at`` is when its first token is due, by the
    replicas' clock; `PoolLine` tells it.
    """

    variant: str
    input_tokens: int
    output_tokens: int
    ttft_left_s: float | None = None
    tpot_s: float | None = None
    session: str | None = None
    answer_left_s: float = inf
    due_at: float = inf

    @classmethod
    def of(
        cls,
        profile: Profile,
        variant: str,
        input_tokens: int,
        session: str | None,
        now: float,
        time_scale: float,
    ) -> "Ask":
        """Return a request's needs in seconds of a model: ``time_scale`` of them in one."""
        left_s = None if profile.ttft_s is None else profile.created_at + profile.ttft_s - now
        return cls(
            variant=variant,
            input_tokens=input_tokens,
            output_tokens=profile.output_tokens,
            ttft_left_s=None if left_s is None else left_s * time_scale,
            tpot_s=None if profile.tpot_s is None else profile.tpot_s * time_scale,
            session=session,
            answer_left_s=(profile.deadline - now) * time_scale,
        )


def due_left_s(profile: Profile, now: float) -> float:
    """Return the seconds until a request's first token is due; inf: it has no TTFT.

    Where none are left, its answer is due, by the deadline.
    """
    if profile.ttft_s is None:
        return inf
    first_at = profile.created_at + profile.ttft_s
    return (first_at if first_at > now else profile.deadline) - now


@dataclass(eq=False, slots=True, init=False)
class Replica:
    """An accelerator with its scheduler's state of the jobs on it."""

    accelerator: Accelerator
    prefixes: PrefixCache | None
    _rooflines: dict[str, Roofline]
    _prompts: PromptQueue
    _tpot_of: dict[str, float]
    _share_max: float
    _prefilled_s: float
    _prefilled_at: float

    def __init__(
        self,
        variants: Mapping[str, VariantLimits],
        prefixes: PrefixCache | None = None,
        *,
        keeps_tpot: bool = False,
    ) -> None:
        self.accelerator = Accelerator(variants, keeps_tpot=keeps_tpot)
        self.prefixes = prefixes
        self._rooflines = {name: limits.roofline for name, limits in variants.items()}
        self._prompts = PromptQueue(self._rooflines, is_by_due=keeps_tpot)
        self._tpot_of = {}
        self._share_max = KEPT_TPOT_PREFILL_SHARE_MAX if keeps_tpot else 0.0
        self._prefilled_s = 0.0
        self._prefilled_at = 0.0

    @property
    def jobs(self) -> int:
        """Jobs that run or wait."""
        return self.accelerator.running + self.accelerator.queued

    @property
    def backlog_s(self) -> float:
        """Time of the prompts that have no first token yet, in seconds."""
        return self._prompts.seconds

    def ahead_s(self, due_at: float) -> float:
        """Return the time of the prompts that are computed before one that is due then."""
        return self._prompts.before_s(due_at)

    def submit(self, job: Job, now: float, session: str | None = None) -> None:
        """Queue a job; what is kept of its session is its own then."""
        if job.tpot_s is not None:
            self._tpot_of[job.id] = job.tpot_s
        self._prompts.add(job)
        self.accelerator.submit(job, now)
        if self.prefixes is not None:
            if session is not None:
                self.prefixes.use((session, job.variant))
            self.prefixes.shrink(self.accelerator.kv_free_bytes)

    def expect(self, job: Job, now: float) -> None:
        """Keep room for a job that decodes on another replica, until it moves here."""
        if job.tpot_s is not None:
            self._tpot_of[job.id] = job.tpot_s
        self.accelerator.expect(job, now)
        if self.prefixes is not None:
            self.prefixes.shrink(self.accelerator.kv_free_bytes)

    def no_longer_expect(self, job: Job, now: float) -> None:
        """Undo `expect`: the job has ended where it was."""
        self._tpot_of.pop(job.id, None)
        self.accelerator.no_longer_expect(job, now)

    def step_s(self, variant: str, sequences: int = 1, context_tokens: int = 0) -> float:
        """Return the time of a decode step of so many sequences of a variant."""
        return self._rooflines[variant].step_s(sequences, context_tokens)

    def cached_tokens(self, variant: str, session: str | None) -> int:
        """Return the number of a session's tokens that the replica still has."""
        if self.prefixes is None or session is None:
            return 0
        return self.prefixes.tokens((session, variant))

    def keep(self, variant: str, session: str | None, tokens: int) -> None:
        """Keep the computed tokens of a session's finished job, as far as there is room."""
        if self.prefixes is not None and session is not None:
            kv_bytes = tokens * self._rooflines[variant].kv_bytes_per_token
            free_bytes = self.accelerator.kv_free_bytes
            self.prefixes.keep((session, variant), tokens, kv_bytes, free_bytes)

    def forget(self) -> None:
        """Lose all that is kept, as a server that ends."""
        if self.prefixes is not None:
            self.prefixes.clear()

    def advance(self, now: float) -> list[Event]:
        """Return all events up to ``now`` that were not yet returned."""
        events = self.accelerator.advance(now)
        for event in events:
            job = self._prompts.take(event.id)
            if job is not None:
                roofline = self._rooflines[job.variant]
                spent_s = roofline.prefill_s(job.input_tokens, job.cached_tokens)
                self._prefilled_s = self._recent_prefill_s(now) + spent_s
                self._prefilled_at = now
            if not isinstance(event, FirstToken):
                self._tpot_of.pop(event.id, None)
        return events

    def can_take(self, ask: Ask, now: float, limits: FillLimits = USUAL) -> bool:
        """Return True if the request and the running ones would meet their SLOs.

        Of each SLO no more than the share in ``limits`` may be used up, and prompts that are due
        later keep their time. Prompts that take much
        of the time keep away what would decode beside them, but for what computes little of its own
        here. Where even a step beside a whole chunk keeps every TPOT, they may take all of it; and
        with ``ahead_s``, where steps beside short chunks do, which is what the replica then takes.
        """
        accelerator = self.accelerator
        if accelerator.is_idle:
            return True
        if not accelerator.has_room(ask.variant, ask.input_tokens + ask.output_tokens):
            return False
        if not self._prompts.leaves_time(ask.due_at, self.prefill_s(ask), now):
            return False
        limits_s = [*self._tpot_of.values()]
        if ask.tpot_s is not None:
            limits_s.append(ask.tpot_s)
        round_s = accelerator.round_s(ask.variant, ask.input_tokens)
        if limits_s:
            busy_s = self._recent_prefill_s(now) + self.backlog_s
            share = busy_s / PREFILL_MEMORY_S
            share_max = max(limits.prefill_share_max, self._share_max)
            limit_s = limits.tpot_share * min(limits_s)
            is_soon = self._share_max > 0 and self.ahead_s(ask.due_at) < limits.ahead_s
            if is_soon and round_s + self._short_chunks_s(ask) <= limit_s:
                share = 0.0
            if self.cached_tokens(ask.variant, ask.session) >= KEPT_SHARE * ask.input_tokens:
                share_max = max(share_max, KEPT_PREFILL_SHARE_MAX)
            if round_s + self._chunk_s(ask) > limit_s and (
                share > share_max or round_s / (1.0 - share) > limit_s
            ):
                return False
        if ask.ttft_left_s is None:
            return True
        return self._ttft_s(ask, round_s) <= limits.ttft_share * ask.ttft_left_s

    def price_s(self, ask: Ask) -> float:
        """Return the device time that a request adds, with what its memory displaces."""
        accelerator, roofline = self.accelerator, self._rooflines[ask.variant]
        steps = max(0, ask.output_tokens - 1)
        context_tokens = ask.input_tokens + ask.output_tokens // 2
        alone_s = roofline.step_s(1, context_tokens)
        beside = accelerator.jobs_of(ask.variant)
        if beside:
            joined_s = roofline.step_s(beside + 1, (beside + 1) * context_tokens)
            step_s = joined_s - roofline.step_s(beside, beside * context_tokens)
            step_s += SHARED_STREAM * alone_s / (beside + 1)
        else:
            step_s = alone_s * (1.0 if accelerator.is_idle else SHARED_STREAM)
        return self.prefill_s(ask) + steps * step_s + self.displaced_s(ask)

    def displaced_s(self, ask: Ask) -> float:
        """Return the prompt time that later turns are expected to lose, as prefixes give way."""
        prefixes = self.prefixes
        if prefixes is None:
            return 0.0
        roofline = self._rooflines[ask.variant]
        shared = self.cached_tokens(ask.variant, ask.session)
        needed = max(0, ask.input_tokens + ask.output_tokens - shared)
        over_bytes = needed * roofline.kv_bytes_per_token
        over_bytes -= self.accelerator.kv_free_bytes - prefixes.kv_bytes
        lost_s = 0.0
        for variant, tokens, kv_bytes in prefixes.oldest():
            if over_bytes <= 0:
                break
            share = min(1.0, over_bytes / kv_bytes)
            lost_s += share * self._rooflines[variant].prefill_s(tokens)
            over_bytes -= kv_bytes
        return lost_s * prefixes.used_share * OLDEST_USED_SHARE

    def _chunk_s(self, ask: Ask) -> float:
        """Return the longest time of a chunk of the request's variant or one that has jobs."""
        return max(
            roofline.prefill_s(PREFILL_CHUNK_TOKENS)
            for name, roofline in self._rooflines.items()
            if name == ask.variant or self.accelerator.jobs_of(name)
        )

    def _short_chunks_s(self, ask: Ask) -> float:
        """Return the time of a short chunk of each variant with prompts, the request's included."""
        return sum(
            roofline.prefill_s(SHORT_CHUNK_TOKENS)
            for name, roofline in self._rooflines.items()
            if name == ask.variant or self.accelerator.has_prompts(name)
        )

    def prefill_s(self, ask: Ask) -> float:
        """Return the time of the request's own prompt, without what is kept of it."""
        cached = min(self.cached_tokens(ask.variant, ask.session), ask.input_tokens - 1)
        roofline = self._rooflines[ask.variant]
        return roofline.prefill_s(ask.input_tokens, max(0, cached))

    def _ttft_s(self, ask: Ask, round_s: float) -> float:
        """Return the time to the first token; each chunk waits for a turn of all lanes."""
        before = self._prompts.before(ask.due_at)
        own = before[ask.variant]
        cached = min(self.cached_tokens(ask.variant, ask.session), ask.input_tokens - 1)
        tokens = own.short_tokens + own.long_tokens + ask.input_tokens - max(0, cached)
        chunks = -(-tokens // PREFILL_CHUNK_TOKENS)
        total_s = chunks * round_s + own.seconds() + self.prefill_s(ask)
        for prompts in before.values():
            if prompts is not own and (theirs := prompts.chunks()):
                total_s += prompts.seconds() * min(1.0, chunks / theirs)
        return total_s

    def _recent_prefill_s(self, now: float) -> float:
        passed_s = max(0.0, now - self._prefilled_at)
        return self._prefilled_s * max(0.0, 1.0 - passed_s / PREFILL_MEMORY_S)
