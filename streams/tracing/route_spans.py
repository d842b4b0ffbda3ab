"""Spans of the router's process: the decision on a request, its time in the hold, its batch."""

from collections.abc import Sequence

from opentelemetry.trace import SpanKind

from policies import Release
from streams.engine.stage import Effect
from streams.engine.trace_context import Context
from streams.tracing import span_attributes as a
from streams.tracing.spans import CommittedStep, Spans, batch_of
from topics.records.evidence import Hold

# A shorter wait for the router is only an attribute.
QUEUE_SEEN_S = 0.01


class RouteSpans(Spans):
    """Writes the spans of router and batcher."""

    def effect(self, effect: Effect, visible: Sequence[CommittedStep]) -> None:
        """Write the spans of an effect, and that of the batch that it releases."""
        super().effect(effect, visible)
        batch = batch_of(effect.records)
        if batch is not None and visible and isinstance(effect.subject, Release):
            self._batch(batch, effect.subject, visible)

    def record(self, visible: CommittedStep) -> None:
        """Write the spans of one record: those of the hold, or of a decision."""
        if visible.evidence.hold is not None:
            self._held(visible, visible.evidence.hold)
        else:
            self._decided(visible)

    def _decided(self, visible: CommittedStep) -> None:
        evidence, source = visible.evidence, visible.source
        came_at = min(source.came_at(evidence.at), evidence.at)
        topic = evidence.source.topic
        is_hold = topic == self.catalogue.held
        group = self.catalogue.batcher_group if is_hold else self.catalogue.router_group
        queued = a.measured("shunter.queue.seconds", a.seconds(evidence.at - came_at))
        said = a.consumed(evidence, group) + a.request(evidence) + a.decision(evidence) + queued
        profile = evidence.profile
        if profile is not None:
            slack_s = a.seconds(profile.deadline - evidence.at)
            said += a.measured("shunter.deadline.slack_s", slack_s)
            if profile.fallbacks:
                said += a.said({"shunter.fallback.reason": profile.fallbacks[-1].reason})
        waited = (came_at, evidence.at)
        is_queue_seen = evidence.at - came_at >= QUEUE_SEEN_S
        # The span that begins the trace contains all the rest, the wait too.
        is_root = not visible.parent_id
        process_id = self.write(
            visible,
            f"process {topic}",
            SpanKind.CONSUMER,
            visible.parent_id,
            (came_at if is_root else evidence.at, visible.at),
            said,
            events=a.candidates(evidence),
            error=visible.error,
        )
        if is_queue_seen:
            queue = a.queued(topic) + queued
            above = process_id if is_root else visible.parent_id
            self.write(visible, "queue", SpanKind.INTERNAL, above, waited, queue)
        self.send(visible, process_id)

    def _held(self, visible: CommittedStep, hold: Hold) -> None:
        evidence = visible.evidence
        batch = evidence.batch
        said = a.request(evidence) + a.said(
            {
                "shunter.hold.group": hold.group,
                "shunter.hold.seconds": a.seconds(hold.held_s),
                "shunter.hold.release_reason": hold.reason,
                "shunter.deadline.slack_s": a.seconds(hold.slack_s),
                "messaging.batch.message_count": None if batch is None else batch.size,
            }
        )
        if evidence.placement is not None:
            said += a.place(evidence.placement)
        hold_id = self.write(
            visible,
            "hold",
            SpanKind.INTERNAL,
            visible.parent_id,
            (evidence.at - max(hold.held_s, 0.0), evidence.at),
            said,
            # The first member of a batch has them; the batch's own span too.
            events=a.candidates(evidence),
            error=visible.error,
        )
        whole = batch_of(visible.sent)
        link = b"" if batch is None else a.linked({"shunter.batch.id": batch.id})
        self.send(visible, hold_id, () if whole is None else ((whole, link),))

    def _batch(self, batch: Context, release: Release, visible: Sequence[CommittedStep]) -> None:
        first = visible[0].evidence
        topic = visible[0].sent[0].topic
        links = [
            (context, a.linked({"messaging.message.id": each.evidence.request_id}))
            for each in visible
            for outgoing in each.sent
            if (context := Context.of(outgoing.headers)) is not None
        ]
        option = release.target.option
        told = {
            "messaging.batch.message_count": len(release.members),
            "shunter.hold.release_reason": release.reason,
            "shunter.hold.group": release.members[0].group,
            "shunter.deadline.slack_s": a.seconds(release.slack_s),
            "shunter.pool": option.pool,
            "shunter.device": option.device,
            "shunter.model_variant": option.variant,
            "shunter.precision": option.precision,
            "shunter.region": option.region,
            "shunter.placement.path": release.target.path,
            "shunter.batch.id": "" if first.batch is None else first.batch.id,
            "shunter.policy.version": first.policy_version,
        }
        leaders = [each.evidence for each in visible if each.evidence.candidates]
        self.telemetry.write(
            f"send {topic}",
            SpanKind.PRODUCER,
            batch,
            0,
            (first.at, visible[0].at),
            a.messaging(topic, "send") + a.said(told),
            events=a.candidates(leaders[0]) if leaders else (),
            links=links,
        )
