"""A replica that runs each answer of a request for itself, and tells of all of them as of one job.

A prompt is computed once, and its keys and values are kept once: its other replies begin when its
first token is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from policies.hardware.iteration import (
    Cancelled,
    Completion,
    Event,
    FirstToken,
    Job,
    Moved,
    Refused,
    VariantLimits,
)
from policies.hardware.prefix_cache import PrefixCache
from policies.hardware.replica import Replica


@dataclass(eq=False, slots=True)
class _Parts:
    """The answers of a request: ``names`` are the jobs of its replies, one after the other."""

    job: Job
    replies: int
    heads: dict[str, Job] = field(default_factory=dict)
    """The jobs that compute a prompt, whose other replies have not begun."""
    names: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    written: dict[str, int] = field(default_factory=dict)
    """Tokens of each that has ended."""
    cut: int = 0
    """How many of them were taken out."""
    started_at: float = inf
    first_token_at: float = inf
    device_s: float = 0.0
    is_told: bool = False
    is_leaving: bool = False
    refusal: Refused | None = None

    def take(self, event: Completion | Cancelled | Refused) -> None:
        """Count the end of one of them."""
        self.open.discard(event.id)
        if isinstance(event, Refused):
            self.refusal = self.refusal or event
            return
        self.device_s += event.device_s
        if isinstance(event, Cancelled):
            self.written[event.id] = event.output_tokens
            self.cut += 1
            return
        self.written[event.id] = self.job.output_tokens
        self.started_at = min(self.started_at, event.started_at)
        self.first_token_at = min(self.first_token_at, event.first_token_at)

    def end(self, at: float) -> Completion | Cancelled | Refused:
        """Return the event that ends the request, once nothing of it is open."""
        name, tokens = self.job.id, sum(self.written.values())
        if self.refusal is not None:
            return Refused(name, at, self.refusal.reason)
        # Tokens don't tell it: a list of texts to embed has none.
        if self.cut or len(self.written) < len(self.names):
            return Cancelled(name, at, self.device_s, tokens)
        return Completion(name, self.started_at, self.first_token_at, at, self.device_s)


class AnsweringReplica(Replica):
    """A replica for requests of any number of answers."""

    def __init__(
        self,
        variants: Mapping[str, VariantLimits],
        prefixes: PrefixCache | None = None,
        *,
        keeps_tpot: bool = False,
    ) -> None:
        super().__init__(variants, prefixes, keeps_tpot=keeps_tpot)
        # By the name of the request, and by that of each of its answers.
        self._requests: dict[str, _Parts] = {}
        self._parts: dict[str, _Parts] = {}

    def submit_answers(
        self, job: Job, prompts: int, replies: int, now: float, session: str | None = None
    ) -> None:
        """Queue a request.

        Args:
            job: its input tokens are those of all prompts, its output tokens those of one reply.
            prompts: so many, of about the same length.
            replies: to each; without output it is one.
            now: as `Replica.submit` has it.
            session: of one with a single prompt.
        """
        replies = replies if job.output_tokens else 1
        if prompts == replies == 1:
            self.submit(job, now, session)
            return
        parts = self._requests[job.id] = _Parts(job, replies)
        each, longer = divmod(job.input_tokens, prompts)
        for number in range(prompts):
            tokens = max(1, each + (number < longer))
            cached = min(job.cached_tokens, tokens) if prompts == 1 else 0
            name = f"{job.id}.{number}"
            head = replace(job, id=name, input_tokens=tokens, cached_tokens=cached)
            parts.heads[name] = head
            parts.names += [name, *(f"{name}.{reply}" for reply in range(1, replies))]
            self._begin(parts, head, now, session)

    def _begin(self, parts: _Parts, job: Job, now: float, session: str | None = None) -> None:
        parts.open.add(job.id)
        self._parts[job.id] = parts
        self.submit(job, now, session)

    def advance(self, now: float) -> list[Event]:
        """Return all events up to ``now`` that were not yet returned, of whole requests."""
        if not self._parts:
            return super().advance(now)
        return [told for event in super().advance(now) for told in self._told(event, now)]

    def _told(self, event: Event, now: float) -> Iterator[Event]:
        parts = self._parts.get(event.id)
        if parts is None:
            yield event
        elif isinstance(event, FirstToken):
            if not parts.is_told:
                parts.is_told = True
                yield FirstToken(parts.job.id, event.at)
            self._reply(parts, event.id, now)
        elif not isinstance(event, Moved):
            del self._parts[event.id]
            parts.take(event)
            if parts.refusal is not None and not parts.is_leaving:
                self._leave(parts, now)
            if not parts.open:
                del self._requests[parts.job.id]
                yield parts.end(event.finished_at if isinstance(event, Completion) else event.at)

    def _reply(self, parts: _Parts, name: str, now: float) -> None:
        """Begin the other replies to a prompt that has been computed."""
        head = parts.heads.pop(name, None)
        if head is None or parts.is_leaving:
            return
        tokens = head.input_tokens
        for reply in range(1, parts.replies):
            one = replace(head, id=f"{name}.{reply}", cached_tokens=tokens, shared_tokens=tokens)
            self._begin(parts, one, now)

    @property
    def requests(self) -> int:
        """Return how many requests run or wait."""
        return self.jobs - len(self._parts) + len(self._requests)

    def may_move(self, job_id: str) -> bool:
        """Return True if a job may leave: the answers of a request stay together."""
        return job_id not in self._parts

    def cancel(self, name: str, now: float) -> bool:
        """Remove a request, as `Accelerator.cancel` does."""
        parts = self._requests.get(name)
        return self.accelerator.cancel(name, now) if parts is None else self._leave(parts, now)

    def _leave(self, parts: _Parts, now: float) -> bool:
        parts.is_leaving = True
        # The last first: taken from the end of a queue, thousands don't take a look at all each.
        going = [name for name in reversed(parts.names) if name in parts.open]
        left = [self.accelerator.cancel(name, now) for name in going]
        return any(left)

    def written_of(self, name: str, now: float) -> list[int]:
        """Return the output tokens of each answer of a request at ``now``; of none if it is gone.

        They are in the order of the prompts, and for each in that of its replies.
        """
        parts = self._requests.get(name)
        if parts is None:
            return [self.accelerator.output_tokens_of(name, now)]
        ended = parts.written
        return [
            ended[each] if each in ended else self.accelerator.output_tokens_of(each, now)
            for each in parts.names
        ]
