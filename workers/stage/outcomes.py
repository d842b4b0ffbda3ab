"""Outcomes: the records that a worker writes when a request ends."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from policies import Option
from policies.config.prices import nano_of
from policies.scoring.answers import Answers
from policies.scoring.hours import device_wh, footprint, price_factor
from streams.cancellation.index import CANCELLED
from streams.engine.log import Outgoing
from streams.engine.stage import Effect
from streams.evidence.records import EvidenceWriter
from streams.evidence.step_details import usage_of_tries
from streams.tracing.telemetry import Telemetry
from topics import (
    Charge,
    Comparison,
    Cost,
    Envelope,
    Fallback,
    Footprint,
    Host,
    Profile,
    Response,
    Result,
    ResultError,
    StreamPiece,
    Timing,
    encode,
)
from topics.records import headers as h
from topics.records.money import NANO, Spent
from topics.records.quote_terms import charge
from workers.backends.base import Call, CallError, CallMeter, Outcome
from workers.stage.chunks import Stream
from workers.stage.replies import decode_steps, replies_in
from workers.stage.routed_request import RoutedRequest
from workers.stage.second_runs import SecondRuns

MODEL_DIGEST_CHARACTERS_MAX = 128
Unanswered = Literal["failed", "expired", "cancelled"]


@dataclass(frozen=True, slots=True)
class Task:
    """A request of the pool that a worker has taken, and its stream if the client wants one.

    ``began_at`` is its start, epoch seconds, and ``option`` the hardware that it began on; None
    while it waits. ``meter`` has what it used without an answer.
    """

    routed: RoutedRequest
    stream: Stream | None = None
    began_at: float | None = None
    option: Option | None = None
    meter: CallMeter = field(default_factory=CallMeter)

    def begun(self, at: float, option: Option) -> Self:
        """Return the same once it runs on an option's hardware."""
        return type(self)(self.routed, self.stream, at, option, self.meter)

    @property
    def answers(self) -> int:
        """Return how many answers a server runs for it."""
        return self.routed.profile.answers

    def prefill_s(self, option: Option) -> float:
        """Return the time of its prompts, in seconds of the roofline."""
        return Answers.of(self.routed.profile).prefill_s(option.roofline)

    def call(self) -> Call:
        """Return the call for its backend."""
        routed = self.routed
        tell = None if self.stream is None else self.stream.tell
        what = (routed.request, routed.profile, routed.placement)
        return Call(*what, tell, self.meter, routed.record.context)

    def spent(self) -> Spent | None:
        """Return what its tries here cost that gave no answer; None for nothing."""
        meter, option = self.meter, self.option
        if option is None or meter == CallMeter():
            return None
        usd = option.cut_cost_usd(meter.device_s, meter.input_tokens, meter.output_tokens)
        # When it was cut off its record doesn't tell: it is charged by the hour of its start.
        if self.began_at is not None:
            usd *= price_factor(option, self.began_at, self.began_at)
        nano_usd = nano_of(usd * self.routed.profile.price_factor)
        device_s = round(meter.device_s, 9)
        nano_wh = nano_of(device_wh(option, device_s) or 0.0)
        return Spent(nano_usd, meter.input_tokens, meter.output_tokens, device_s, nano_wh)


class OutcomeWriter:
    """Turns outcomes into records."""

    def __init__(
        self,
        evidence_writer: EvidenceWriter,
        telemetry: Telemetry,
        attempts_max: int,
        host: Host | None = None,
        second_runs: SecondRuns | None = None,
    ) -> None:
        self._evidence_writer = evidence_writer
        self._telemetry = telemetry
        self._attempts_max = attempts_max
        self._host = host
        self._second_runs = second_runs or SecondRuns(evidence_writer, telemetry)

    def under(self, evidence_writer: EvidenceWriter, attempts_max: int) -> Self:
        """Return one by the terms of another policy or fleet, which its evidence names."""
        return type(self)(
            evidence_writer, self._telemetry, attempts_max, self._host, self._second_runs
        )

    def completed(
        self, task: Task, outcome: Outcome, option: Option, comparison: Comparison | None = None
    ) -> Effect:
        """Return result and evidence of an answer by the option's hardware.

        Of a second run the result has no answer: no client asked for it.

        Args:
            task: the request.
            outcome: the answer.
            option: the hardware.
            comparison: of a second run, how the answer differs from the first.
        """
        routed, profile = task.routed, task.routed.profile
        usage, tool_calls = outcome.usage, _tool_calls(outcome.response.body)
        if tool_calls != usage.tool_calls:
            usage = replace(usage, tool_calls=tool_calls)
        got, spent = _got(task, outcome, option), task.spent()
        usd = _total_usd(routed, got.cost_usd, spent)
        paid = _paid(profile, usd)
        result = Result(
            id=profile.id,
            status="completed",
            timing=self._timing(task, outcome.finished_at, outcome),
            response=None if profile.is_background else outcome.response,
            placement=routed.placement,
            usage=usage,
            cost=_cost(routed, usd, paid),
            trace_id=routed.record.trace_id,
            metadata=_metadata(routed),
            reference_of=profile.of,
            model=profile.model,
        )
        evidence = self._evidence_writer.ended(
            routed.record,
            profile,
            "executed",
            outcome.finished_at,
            placement=routed.placement,
            promised=routed.promised,
            held_promise=routed.held_promise,
            got=got,
            spent=spent,
            charge=paid,
            usage=usage,
            batch=routed.batch,
            host=self._host,
            model_digest=_model_digest(outcome),
            energy_wh=energy_wh(outcome, option),
            footprint=_footprint(outcome, option),
            assumed=option.is_assumed,
            response_digest=self._evidence_writer.digests.digest(
                profile.tenant, outcome.response.body
            ),
            comparison=comparison,
        )
        written = [*self._results(task, result), *evidence]
        if comparison is not None:
            written.append(self._second_runs.told(comparison))
        written += self._second_runs.asked_for(routed, outcome)
        return Effect(routed.record, written, subject=task)

    def expired(self, task: Task, now: float, cause: CallError | None = None) -> Effect:
        """Return result and evidence of a request whose start or answer came too late.

        ``cause`` is how its run ended; None if it has not begun.
        """
        routed, pool = task.routed, task.routed.pool
        details = {fallback.pool: fallback.reason for fallback in routed.profile.fallbacks}
        if cause is None:
            waited_s = now - routed.sent_at
            when = f"before its turn came at {pool}, {waited_s:.1f} s after its placement"
        else:
            when = f"while it ran at {pool}: {cause.message}"
            details[pool] = cause.code
        message = f"the deadline passed {when}"
        error = ResultError("deadline_passed", message, details or None)
        return self._without_answer(task, "expired", error, now)

    def cancelled(self, task: Task, message: str, now: float) -> Effect:
        """Return result and evidence of a request that its client cancelled.

        The message, which has the client's reason, is for the client alone.
        """
        error = ResultError("cancelled", message)
        return self._without_answer(task, "cancelled", error, now, told=CANCELLED)

    def failed(self, task: Task, error: CallError, now: float) -> Effect:
        """Return a retry elsewhere, or the failure if no retry is left."""
        routed, profile = task.routed, task.routed.profile
        if error.retry == "never" or profile.attempt >= self._attempts_max:
            tried = {f.pool: f.reason for f in profile.fallbacks} | {routed.pool: error.code}
            failure = ResultError(error.code, error.message, tried)
            return self._without_answer(task, "failed", failure, now, error.response)
        fallback, spent = Fallback(routed.pool, error.code), task.spent()
        again = replace(
            profile,
            spent=profile.spent if spent is None else spent.plus(profile.spent),
            attempt=profile.attempt + 1,
            exclude_pools=(*profile.exclude_pools, routed.pool),
            fallbacks=(*profile.fallbacks, fallback),
        )
        added = {h.PROFILE: encode(again)} | h.carried(routed.record.headers)
        added |= self._telemetry.sent(routed.record, late_at=now)
        is_traced = routed.record.context is not None
        reroute = Outgoing(
            self._evidence_writer.catalogue.reroutes,
            profile.id.encode(),
            routed.record.value,
            h.replaced(h.client_headers(routed.record.headers, is_traced=is_traced), added),
            partition=profile.ingest_partition % self._evidence_writer.catalogue.partitions,
        )
        evidence = self._evidence_writer.step(
            routed.record,
            profile,
            "fell_back",
            now,
            placement=routed.placement,
            promised=routed.promised,
            fallback=fallback,
            spent=spent,
            host=self._host,
            reason=error.code,
            message=error.message,
        )
        return Effect(routed.record, [reroute, evidence], subject=task)

    def _without_answer(
        self,
        task: Task,
        status: Unanswered,
        error: ResultError,
        now: float,
        response: Response | None = None,
        told: str | None = None,
    ) -> Effect:
        routed, profile, spent = task.routed, task.routed.profile, task.spent()
        usd = _total_usd(routed, 0.0, spent)
        paid = _paid(profile, usd) if usd else None
        result = Result(
            id=profile.id,
            status=status,
            timing=self._timing(task, now, None),
            response=None if profile.is_background else response,
            error=error,
            placement=routed.placement,
            usage=usage_of_tries(spent, profile.spent),
            cost=_cost(routed, usd, paid) if spent or profile.spent else None,
            trace_id=routed.record.trace_id,
            metadata=_metadata(routed),
            reference_of=profile.of,
            model=profile.model,
        )
        evidence = self._evidence_writer.ended(
            routed.record,
            profile,
            status,
            now,
            placement=routed.placement,
            promised=routed.promised,
            held_promise=routed.held_promise,
            spent=spent,
            charge=paid,
            batch=routed.batch,
            host=self._host,
            response_digest=None
            if response is None
            else self._evidence_writer.digests.digest(profile.tenant, response.body),
            reason=error.code,
            message=told or error.message,
        )
        return Effect(routed.record, [*self._results(task, result), *evidence], subject=task)

    def _results(self, task: Task, result: Result) -> list[Outgoing]:
        """Return the result, and the end of the stream if there is one."""
        written = [self._evidence_writer.result(result)]
        if task.stream is not None:
            at = result.timing.finished_at or result.timing.created_at
            attempt, index = task.routed.profile.attempt, task.stream.pieces
            end = StreamPiece(result.id, attempt, index, at, result=result)
            topic = self._evidence_writer.catalogue.streams
            written.append(Outgoing(topic, result.id.encode(), encode(end)))
        return written

    async def compared(self, task: Task, outcome: Outcome, option: Option) -> Comparison | None:
        """Return how a second run's answer differs from the first; None if it is no second run."""
        return await self._second_runs.compared(task.routed, outcome, option)

    @staticmethod
    def _timing(task: Task, finished_at: float, outcome: Outcome | None) -> Timing:
        profile = task.routed.profile
        return Timing(
            created_at=profile.created_at,
            routed_at=profile.routed_at,
            released_at=task.routed.released_at,
            started_at=None if outcome is None else outcome.started_at,
            first_token_at=None if outcome is None else outcome.first_token_at,
            finished_at=finished_at,
        )


def _metadata(routed: RoutedRequest) -> object:
    """Return the client's metadata, by which it knows its own request: not a second run of it."""
    return None if routed.profile.is_background else routed.request.metadata


def _model_digest(outcome: Outcome) -> str | None:
    """Return an OpenAI-compatible server's fingerprint of model and settings."""
    body = outcome.response.body
    told = body.get("system_fingerprint") if isinstance(body, dict) else None
    return told[:MODEL_DIGEST_CHARACTERS_MAX] if isinstance(told, str) else None


def energy_wh(outcome: Outcome, option: Option) -> float | None:
    """Return the watt hours of an answer: its device time at busy power; None where unknown."""
    found = device_wh(option, outcome.device_s)
    return None if found is None else round(found, 9)


def _footprint(outcome: Outcome, option: Option) -> Footprint | None:
    """Return what an answer took by the prices of its hour, from its first token to its finish."""
    finished_at = outcome.finished_at
    begin = finished_at if outcome.first_token_at is None else outcome.first_token_at
    return footprint(option, outcome.device_s, begin, finished_at)


def _tool_calls(body: object) -> int:
    """Return the number of tool calls in all choices of an answer."""
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        return 0
    messages = [c.get("message") for c in choices if isinstance(c, dict)]
    calls = [m.get("tool_calls") for m in messages if isinstance(m, dict)]
    return sum(len(each) for each in calls if isinstance(each, list))


def _total_usd(routed: RoutedRequest, usd: float, spent: Spent | None) -> float:
    """Return all that a request cost: its answer, and the tries that gave none."""
    return usd + sum(each.usd for each in (spent, routed.profile.spent) if each is not None)


def _paid(profile: Profile, usd: float) -> Charge | None:
    """Return what a request that took a quote pays for this cost; None if it took none."""
    return None if profile.quote is None else charge(profile.quote, round(usd * NANO))


def _cost(routed: RoutedRequest, usd: float, paid: Charge | None) -> Cost:
    envelope_usd = None if routed.promised is None else routed.promised.cost_usd
    if paid is None:
        return Cost(usd, envelope_usd)
    return Cost(paid.charged_nano_usd / NANO, envelope_usd, paid.quoted_nano_usd / NANO)


def _got(task: Task, outcome: Outcome, option: Option) -> Envelope:
    profile, usage = task.routed.profile, outcome.usage
    created_at, first = profile.created_at, outcome.first_token_at
    replies = replies_in(outcome.response, task.routed.request, profile)
    steps = decode_steps(profile, usage, replies, option)
    tokens = (usage.input_tokens, usage.output_tokens, usage.cached_tokens)
    by_hour = price_factor(
        option, outcome.finished_at if first is None else first, outcome.finished_at
    )
    return Envelope(
        cost_usd=option.cost_usd(outcome.device_s, *tokens) * by_hour * profile.price_factor,
        ttft_s=None if first is None else first - created_at,
        finish_s=outcome.finished_at - created_at,
        tpot_s=(outcome.finished_at - first) / steps if first is not None and steps > 0 else None,
    )
