"""How a request ends at a worker: what is written of it."""

from dataclasses import dataclass, replace
from typing import Literal

from policies import Option
from streams import Effect, Outgoing, Record, Scribe, Telemetry
from topics import (
    BadRecordError,
    Cost,
    Envelope,
    Fallback,
    Host,
    Result,
    ResultError,
    Timing,
    encode,
)
from topics import headers as h
from workers.backend import Call, CallError, Outcome

MODEL_DIGEST_CHARACTERS_MAX = 128
Unanswered = Literal["failed", "expired", "cancelled"]


@dataclass(frozen=True, slots=True)
class Task:
    """A request of the pool, as it was read, and the hardware it runs on."""

    record: Record
    call: Call
    option: Option


class Ending:
    """Turns outcomes into records."""

    def __init__(
        self,
        scribe: Scribe,
        telemetry: Telemetry,
        attempts_max: int,
        host: Host | None = None,
    ) -> None:
        self._scribe = scribe
        self._telemetry = telemetry
        self._attempts_max = attempts_max
        self._host = host

    def completed(self, task: Task, outcome: Outcome) -> Effect:
        """Return result and evidence of an answer."""
        profile, placement = task.call.profile, task.call.placement
        promised = _promised(task.record)
        got = _got(task, outcome)
        times = (outcome.started_at, outcome.first_token_at, outcome.finished_at)
        self._telemetry.executed(
            task.record, profile, placement, outcome.usage, times, got.cost_usd
        )
        result = Result(
            id=profile.id,
            status="completed",
            timing=self._timing(task, outcome.finished_at, outcome),
            response=outcome.response,
            placement=placement,
            usage=outcome.usage,
            cost=Cost(got.cost_usd, None if promised is None else promised.cost_usd),
            trace_id=h.trace_id(task.record.headers),
            metadata=task.call.request.metadata,
        )
        evidence = self._scribe.step(
            task.record,
            profile,
            "executed",
            outcome.finished_at,
            placement=placement,
            promised=promised,
            got=got,
            usage=outcome.usage,
            batch=h.read_batch(task.record.headers),
            host=self._host,
            model_digest=_model_digest(outcome),
            response_digest=self._scribe.digests.digest(profile.tenant, outcome.response.body),
        )
        return Effect(task.record, [self._scribe.result(result), evidence], subject=task)

    def expired(self, task: Task, now: float) -> Effect:
        """Return result and evidence of a request whose turn came too late."""
        message = f"the deadline passed before a device of {task.option.pool} was free"
        error = ResultError("deadline_passed", message)
        return self._without_answer(task, "expired", error, now)

    def cancelled(self, task: Task, message: str, now: float) -> Effect:
        """Return result and evidence of a request that its client doesn't want any more."""
        return self._without_answer(task, "cancelled", ResultError("cancelled", message), now)

    def failed(self, task: Task, error: CallError, now: float) -> Effect:
        """Return another try elsewhere, or the failure where there is none to make."""
        profile = task.call.profile
        if not error.elsewhere or profile.attempt >= self._attempts_max:
            tried = {f.pool: f.reason for f in profile.fallbacks} | {task.option.pool: error.code}
            return self._without_answer(
                task, "failed", ResultError(error.code, error.message, tried), now
            )
        fallback = Fallback(task.option.pool, error.code)
        again = replace(
            profile,
            attempt=profile.attempt + 1,
            exclude_pools=(*profile.exclude_pools, task.option.pool),
            fallbacks=(*profile.fallbacks, fallback),
        )
        reroute = Outgoing(
            self._scribe.catalogue.reroutes,
            profile.id.encode(),
            task.record.value,
            h.replaced(h.client_headers(task.record.headers), {h.PROFILE: encode(again)}),
            partition=profile.ingest_partition % self._scribe.catalogue.partitions,
        )
        evidence = self._scribe.step(
            task.record,
            profile,
            "fell_back",
            now,
            placement=task.call.placement,
            promised=_promised(task.record),
            fallback=fallback,
            host=self._host,
            reason=error.code,
            message=error.message,
        )
        return Effect(task.record, [reroute, evidence], subject=task)

    def _without_answer(
        self, task: Task, status: Unanswered, error: ResultError, now: float
    ) -> Effect:
        profile = task.call.profile
        result = Result(
            id=profile.id,
            status=status,
            timing=self._timing(task, now, None),
            error=error,
            placement=task.call.placement,
            trace_id=h.trace_id(task.record.headers),
            metadata=task.call.request.metadata,
        )
        evidence = self._scribe.step(
            task.record,
            profile,
            status,
            now,
            placement=task.call.placement,
            promised=_promised(task.record),
            batch=h.read_batch(task.record.headers),
            host=self._host,
            reason=error.code,
            message=error.message,
        )
        return Effect(task.record, [self._scribe.result(result), evidence], subject=task)

    @staticmethod
    def _timing(task: Task, finished_at: float, outcome: Outcome | None) -> Timing:
        profile = task.call.profile
        return Timing(
            created_at=profile.created_at,
            routed_at=profile.routed_at,
            released_at=released_at(task.record),
            started_at=None if outcome is None else outcome.started_at,
            first_token_at=None if outcome is None else outcome.first_token_at,
            finished_at=finished_at,
        )


def released_at(record: Record) -> float | None:
    """Return when the hold let a request go, epoch seconds; None if it was never held.

    Raises:
        BadRecordError: the header is not a time.
    """
    value = h.find(record.headers, h.RELEASED_AT)
    try:
        return None if value is None else float(value)
    except ValueError as error:
        message = f"header {h.RELEASED_AT}: {error}"
        raise BadRecordError("decode", "bad_header", message) from error


def _model_digest(outcome: Outcome) -> str | None:
    """Return the fingerprint that an OpenAI-compatible server gives of model and settings."""
    body = outcome.response.body
    told = body.get("system_fingerprint") if isinstance(body, dict) else None
    return told[:MODEL_DIGEST_CHARACTERS_MAX] if isinstance(told, str) else None


def _promised(record: Record) -> Envelope | None:
    try:
        return h.read(record.headers, h.PROMISED, Envelope)
    except BadRecordError:
        return None


def _got(task: Task, outcome: Outcome) -> Envelope:
    created_at = task.call.profile.created_at
    first, steps = outcome.first_token_at, outcome.usage.output_tokens - 1
    return Envelope(
        cost_usd=outcome.device_s * task.option.usd_per_s,
        ttft_s=None if first is None else first - created_at,
        finish_s=outcome.finished_at - created_at,
        tpot_s=(outcome.finished_at - first) / steps if first is not None and steps > 0 else None,
    )
