"""What a router writes of a request that it has decided on."""

from zlib import crc32

from policies import Decision, Inputs
from streams.engine.log import Outgoing, Record
from streams.engine.stage import Effect
from streams.evidence.records import EvidenceWriter, told
from streams.tracing.telemetry import Telemetry
from topics import Placement, Profile, ResultError, Shadow, Tag, TextDigest
from topics.records import headers as h
from topics.records.evidence import Step
from topics.records.frozen import dataclass
from topics.records.result import Status


@dataclass(frozen=True, slots=True)
class DecidedRequest:
    """A request with its decision, and what that was made on, as it was then."""

    record: Record
    profile: Profile
    tags: dict[str, Tag]
    decision: Decision
    digest: TextDigest | None
    inputs: Inputs
    view_version: int
    shadow: Shadow | None
    now: float


class CaseWriter:
    """Writes the records of decisions: to a lane, to the hold, or a result, each with evidence."""

    def __init__(self, writer: EvidenceWriter, telemetry: Telemetry) -> None:
        self._writer = writer
        self._telemetry = telemetry

    def effect(self, case: DecidedRequest) -> Effect:
        """Return the effect of a decision."""
        if case.decision.action == "place":
            return self._place(case)
        if case.decision.action == "hold":
            return self._hold(case)
        return self._end(case)

    def _place(self, case: DecidedRequest) -> Effect:
        profile, decision = case.profile, case.decision
        option = decision.option
        if option is None:
            raise ValueError("a decision to place without hardware")
        placement = Placement(
            pool=option.pool,
            device=option.device,
            model_variant=option.variant,
            precision=option.precision,
            region=option.region,
            path="direct",
            attempt=profile.attempt,
            fallbacks=profile.fallbacks,
        )
        added = h.encoded(profile=profile, placement=placement, promised=decision.promised)
        added |= self._telemetry.sent(case.record) | self._carried(case.record)
        request = Outgoing(
            self._writer.catalogue.pool_lane(option.pool, "direct"),
            profile.id.encode(),
            case.record.value,
            h.replaced(h.client_headers(case.record.headers), added),
            partition=profile.ingest_partition % self._writer.catalogue.partitions,
        )
        records = [request, self._evidence(case, "placed", placement)]
        return Effect(case.record, records, subject=case)

    def _hold(self, case: DecidedRequest) -> Effect:
        profile, group = case.profile, case.decision.group or ""
        added = h.encoded(profile=profile, promised=case.decision.promised)
        added |= {h.GROUP: group.encode(), h.HELD_AT: repr(case.now).encode()}
        added |= self._telemetry.sent(case.record) | self._carried(case.record)
        held = Outgoing(
            self._writer.catalogue.held,
            profile.id.encode(),
            case.record.value,
            h.replaced(h.client_headers(case.record.headers), added),
            partition=crc32(group.encode()) % self._writer.catalogue.partitions,
        )
        return Effect(case.record, [held, self._evidence(case, "held", None)], subject=case)

    def _carried(self, record: Record) -> dict[str, bytes]:
        """Return what goes with a second run; a client's own headers of these names do not."""
        is_first = record.partition.topic == self._writer.catalogue.requests
        return {} if is_first else h.carried(record.headers)

    def _end(self, case: DecidedRequest) -> Effect:
        decision, profile = case.decision, case.profile
        tried = {fallback.pool: fallback.reason for fallback in profile.fallbacks}
        details = decision.refusals
        if tried:
            details = (details or {}) | tried
        error = ResultError(decision.reason, decision.message or "", details)
        status: Status
        step: Step
        if decision.action == "expire":
            status = step = "expired"
        elif profile.attempt > 1:
            # It was accepted and tried, and no pool is left.
            status = step = "failed"
        else:
            status = step = "rejected"
        result = self._writer.no_answer(case.record, profile, status, error, case.now)
        return Effect(case.record, [result, self._evidence(case, step, None)])

    def _evidence(self, case: DecidedRequest, step: Step, placement: Placement | None) -> Outgoing:
        decision = case.decision
        return self._writer.step(
            case.record,
            case.profile,
            step,
            case.now,
            view_version=case.view_version,
            tags=case.tags,
            profile=told(case.profile),
            inputs=case.inputs,
            candidates=decision.candidates,
            shadow=case.shadow,
            placement=placement,
            assumed=decision.option is not None and decision.option.is_assumed,
            promised=decision.promised,
            request_digest=case.digest,
            reason=decision.reason,
            message=decision.message,
        )
