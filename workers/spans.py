"""Spans of a worker: a request's wait for a place, its inference, and its end."""

from opentelemetry.trace import SpanKind

from streams.engine.clock import Clock
from streams.engine.stage import Effect
from streams.engine.trace_context import Context
from streams.metrics.metric import gen_ai_operation
from streams.tracing import span_attributes as a
from streams.tracing.spans import CommittedStep, Spans, batch_of
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Evidence, Profile, Result
from workers.call_attributes import asked, ended
from workers.span_texts import texts_of
from workers.stage.outcomes import Task

# Failures before anything was sent to the model server.
_NOT_SENT = frozenset({"circuit_open", "variant_not_served"})
# Of calls whose first token was seen: the conventions' streaming mode, whatever the client wants.
_IN_PIECES = a.said({"gen_ai.request.stream": True})


class WorkSpans(Spans):
    """Writes the spans of the worker of a pool."""

    def __init__(
        self,
        telemetry: Telemetry,
        catalogue: Catalogue,
        clock: Clock,
        pool: str,
        provider: str,
    ) -> None:
        super().__init__(telemetry, catalogue, clock)
        self._group = catalogue.worker_group(pool)
        self._provider = provider

    def is_worth_it(self, evidence: Evidence, effect: Effect) -> bool:
        """Return True if a request failed or ended too late."""
        task = effect.subject
        is_late = isinstance(task, Task) and evidence.at > task.routed.profile.deadline
        return is_late or super().is_worth_it(evidence, effect)

    def record(self, visible: CommittedStep) -> None:
        """Write the spans of one record."""
        evidence, task = visible.evidence, visible.effect.subject
        said = a.consumed(evidence, self._group) + a.request(evidence)
        began_at = evidence.at
        if isinstance(task, Task):
            began_at = evidence.at if task.began_at is None else task.began_at
            self._queue(visible, task, began_at)
            slack_s = a.seconds(task.routed.profile.deadline - evidence.at)
            said += a.place(task.routed.placement)
            said += a.measured("shunter.deadline.slack_s", slack_s)
        fallback, of_batch = evidence.fallback, evidence.batch
        said += a.said(
            {
                "shunter.ended": evidence.step,
                "shunter.fallback.reason": None if fallback is None else fallback.reason,
                "messaging.batch.message_count": None if of_batch is None else of_batch.size,
            }
        )
        batch = _batch_of(visible)
        link = b"" if of_batch is None else a.linked({"shunter.batch.id": of_batch.id})
        process_id = self.write(
            visible,
            f"process {evidence.source.topic}",
            SpanKind.CONSUMER,
            visible.parent_id,
            (began_at, visible.at),
            said,
            links=() if batch is None else ((batch, link),),
            error=visible.error,
        )
        if isinstance(task, Task) and task.began_at is not None:
            self._inference(visible, task, task.began_at, process_id)
        self.send(visible, process_id)

    def _queue(self, visible: CommittedStep, task: Task, began_at: float) -> None:
        """Write spans of the request's time on the lane and of its wait for a place."""
        profile = task.routed.profile
        sent_at = max(visible.source.timestamp_ms / 1000, task.routed.released_at or 0.0)
        if profile.attempt == 1:
            sent_at = max(sent_at, profile.routed_at)
        times = (min(sent_at, began_at), began_at)
        waited_s = a.seconds(times[1] - times[0])
        said = a.said({"shunter.pool": task.routed.pool, "shunter.queue.seconds": waited_s})
        parent_id = visible.parent_id
        self.write(visible, "queue", SpanKind.INTERNAL, parent_id, times, said)

    def _inference(
        self, visible: CommittedStep, task: Task, began_at: float, process_id: int
    ) -> None:
        evidence, profile = visible.evidence, task.routed.profile
        if evidence.reason in _NOT_SENT:
            return
        operation = gen_ai_operation(profile.operation)
        times = (began_at, evidence.at)
        usage, got = evidence.usage, evidence.got
        request = task.routed.request
        said = _called(operation, self._provider, profile) + a.hardware(task.routed.placement)
        said += a.said(asked(request.body, request.conversation, request.output_tokens_max))
        said += a.said(
            {
                "gen_ai.response.model": task.routed.variant,
                "shunter.deadline.slack_s": a.seconds(profile.deadline - evidence.at),
                "gen_ai.usage.input_tokens": None if usage is None else usage.input_tokens,
                "gen_ai.usage.output_tokens": None if usage is None else usage.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": (
                    None if usage is None else usage.cached_tokens
                ),
                "shunter.cost.usd": None if got is None else a.usd(got.cost_usd),
            }
        )
        answer = None
        for outgoing in visible.sent:
            result = outgoing.payload
            if isinstance(result, Result) and result.response is not None:
                answer = result.response.body
            if isinstance(result, Result) and (started := result.timing.started_at) is not None:
                times = (started, evidence.at)
                if (first := result.timing.first_token_at) is not None:
                    first_s = a.seconds(first - started)
                    said += a.measured("gen_ai.response.time_to_first_chunk", first_s)
                    said += _IN_PIECES
        said += a.said(ended(answer))
        if self.telemetry.text_max:
            said += texts_of(request.body, answer, self.telemetry.text_max)
        self.write(
            visible,
            f"{operation} {profile.model}",
            SpanKind.CLIENT,
            process_id,
            times,
            said,
            error=visible.error,
        )


def _batch_of(visible: CommittedStep) -> Context | None:
    """Return the context of a request's batch, if the batch's span is written."""
    task = visible.effect.subject
    if not isinstance(task, Task):
        return batch_of([visible.source])
    context = task.routed.batch_context
    return context if context is not None and context.is_sampled else None


def _called(operation: str, provider: str, profile: Profile) -> a.Said:
    return a.said(
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": profile.model,
            "shunter.task": profile.task,
            "shunter.tenant": profile.tenant,
            "shunter.attempt": profile.attempt,
        }
    )
