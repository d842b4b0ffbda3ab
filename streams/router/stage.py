"""The router: tags each request, decides on it, and sends it on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

from policies import (
    Decision,
    Inputs,
    Placer,
    Rates,
    Shares,
    Situation,
    Tagged,
    UnservableError,
    allow_again,
    bind,
    decide_beside,
    decided_tags,
    tag,
)
from policies.quality.known import KnownQuality
from policies.quality.sampling import Sampler
from streams.config.active_policy import DecisionContext
from streams.config.token_counting import TokenCounter
from streams.engine.clock import Clock
from streams.engine.log import Log, Outgoing, Partition, Record
from streams.engine.stage import Effect, TransactionPlan
from streams.evidence.immediate_stage import ImmediateStage
from streams.evidence.records import EvidenceWriter, told
from streams.router.deduplication import Duplicates
from streams.router.keys import ProvenKeys
from streams.router.turns import Read, in_turn
from streams.tracing.telemetry import Telemetry
from topics import (
    InferenceRequest,
    Placement,
    Profile,
    Progress,
    ResultError,
    Shadow,
    Tag,
    TextDigest,
    parse_request,
)
from topics.records import headers as h
from topics.records.evidence import Step
from topics.records.frozen import dataclass
from topics.records.result import Status


@dataclass(frozen=True, slots=True)
class _Case:
    """A request with its decision."""

    record: Record
    profile: Profile
    tags: dict[str, Tag]
    decision: Decision
    digest: TextDigest | None
    inputs: Inputs
    shadow: Shadow | None
    now: float


class Router(ImmediateStage):
    """The stage from the ingest topic (and the reroutes) to lanes, hold and results."""

    def __init__(
        self,
        situation: Situation,
        evidence_writer: EvidenceWriter,
        clock: Clock,
        telemetry: Telemetry,
        *,
        request_bytes_max: int,
        duplicate_window_records: int,
        tokens: TokenCounter | None = None,
        quality: KnownQuality | None = None,
        key_secret: str | None = None,
    ) -> None:
        super().__init__(evidence_writer, clock)
        self._keys = ProvenKeys(key_secret)
        self._tokens = tokens or TokenCounter({})
        self._placer = Placer(situation, Shares(situation.policy))
        self._shadow: Situation | None = None
        self._telemetry = telemetry
        self._request_bytes_max = request_bytes_max
        self._duplicates = Duplicates(
            evidence_writer.catalogue.seen_ids, duplicate_window_records, self._is_request
        )
        self._ingest: set[Partition] = set()
        self._rates = Rates(situation.policy)
        self._sampler = Sampler(situation.policy, quality or KnownQuality())

    @property
    def _situation(self) -> Situation:
        return self._placer.situation

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.router_group

    @property
    def topics(self) -> Sequence[str]:
        """Ingest, and the reroutes."""
        return (self._catalogue.requests, self._catalogue.reroutes)

    def take_context(self, terms: DecisionContext) -> None:
        """Adopt new terms. Only while no work is in flight."""
        self._placer.take(terms.situation)
        self._evidence_writer, self._tokens = terms.evidence_writer, terms.tokens
        self._shadow = terms.shadow
        self._rates.policy = self._sampler.policy = terms.situation.policy

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Read the last ids; decisions must not depend on any other state."""
        if partition.topic == self._catalogue.requests:
            self._ingest.add(partition)
            await self._duplicates.restore(partition, progress, log)

    def forget(self, partition: Partition) -> None:
        """Drop the ids of a partition that is another's."""
        self._ingest.discard(partition)
        self._duplicates.forget(partition)

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """Keep the ids of the routed requests."""
        self._duplicates.done(partition)

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Return each record's effect."""
        if not records:
            return None
        now = self._clock.now()
        self._situation.view.prune(now)
        if partition.topic == self._catalogue.reroutes:
            effects = [self._route_again(self._telemetry.entered(r), now) for r in records]
        else:
            records = [self._telemetry.admitted(record) for record in records]
            read = [self._read(record) for record in records]
            ids = [request.id for request in read if isinstance(request, InferenceRequest)]
            await self._duplicates.check_first(partition, ids)
            turns = in_turn(records, read, self._duplicates.first)
            effects = [self._route(*each, now) for each in turns]
            effects += self._duplicates.finished(partition, records[-1].offset + 1)
        return TransactionPlan(Progress(records[-1].offset + 1), effects)

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Dead-letter the request that the log refuses; an accepted one also gets a failure."""
        (letter,) = super().refused(effect, record, error)
        source = effect.source
        if source is not None and isinstance(effect.subject, _Case):
            profile, now = effect.subject.profile, self._clock.now()
            failure = ResultError("refused", f"{record.topic} refused the request: {error}")
            letter.records += [
                self._evidence_writer.no_answer(source, profile, "failed", failure, now),
                self._evidence_writer.step(
                    source, profile, "failed", now, reason=failure.code, message=failure.message
                ),
            ]
        return [letter]

    def _read(self, record: Record) -> Read:
        try:
            record.check_readable()
            return parse_request(
                record.value,
                bytes_max=self._request_bytes_max,
                default_id=h.cloud_event_id(record.headers),
            )
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return error

    def _is_request(self, record: Record) -> bool:
        return isinstance(self._read(record), InferenceRequest)

    def _route_again(self, record: Record, now: float) -> Effect:
        try:
            record.check_readable()
            here = self._situation
            profile = bind(h.read_profile(record.headers), here.policy)
            profile = allow_again(profile, here.options, here.policy)
            shadow = None if self._shadow is None else decide_beside(profile, self._shadow, now)
            return self._decide(record, profile, {}, None, shadow, now)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return self._evidence_writer.set_aside(record, error, now, is_accepted=True)

    def _route(self, record: Record, request: Read, first: int | None, now: float) -> Effect:
        if not isinstance(request, InferenceRequest):
            return self._evidence_writer.set_aside(record, request, now, is_accepted=False)
        try:
            if first is not None:
                return self._evidence_writer.duplicate(record, request, first, now)
            return self._route_request(record, request, now)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._evidence_writer.set_aside_request(record, request, error, now)

    def _route_request(self, record: Record, request: InferenceRequest, now: float) -> Effect:
        try:
            key = self._keys.of(record, request, self._situation.policy)
        except UnservableError as error:
            return self._evidence_writer.unservable(record, request, error.code, error.message, now)
        # A backlog that is read at once arrived over time: by the broker's clock, which no client
        # sets.
        came_at = min(record.came_at(now), now)
        part = len(self._ingest) / self._catalogue.partitions
        wait_s = self._rates.wait_s(request.tenant, came_at, part)
        if wait_s:
            message = f"tenant {request.tenant!r} exceeds its rate; try again in {wait_s:.1f} s"
            return self._evidence_writer.unservable(record, request, "rate_limited", message, now)
        try:
            tagged = self._tag(record, request, key, self._situation, now)
        except UnservableError as error:
            return self._evidence_writer.unservable(record, request, error.code, error.message, now)
        digest = self._evidence_writer.digests.of_request(request)
        shadow = self._beside(record, request, key, now)
        return self._decide(record, tagged.profile, tagged.tags, digest, shadow, now, request.body)

    def _tag(
        self,
        record: Record,
        request: InferenceRequest,
        key: str | None,
        here: Situation,
        now: float,
    ) -> Tagged:
        return tag(
            request,
            here.policy,
            received_at=record.came_at(now),
            now=now,
            ingest_partition=record.partition.number,
            count=self._tokens.of(request),
            lengths=self._situation.view.lengths,
            serving=here.options.serving.get(request.model),
            key=key,
        )

    def _beside(
        self, record: Record, request: InferenceRequest, key: str | None, now: float
    ) -> Shadow | None:
        """Return what the second policy would do, if there is one."""
        here = self._shadow
        if here is None:
            return None
        try:
            tagged = self._tag(record, request, key, here, now)
        except UnservableError as error:
            return Shadow(here.policy.version, "reject", error.code)
        return decide_beside(tagged.profile, here, now)

    def _decide(
        self,
        record: Record,
        profile: Profile,
        tags: dict[str, Tag],
        digest: TextDigest | None,
        shadow: Shadow | None,
        now: float,
        body: Mapping[str, Any] | None = None,
    ) -> Effect:
        decision, inputs = self._placer.decide(profile, now)
        if body is not None:
            profile = self._watched(profile, body, decision, now)
        case = _Case(
            record,
            profile,
            tags | decided_tags(profile, decision, self._situation.options, now),
            decision,
            digest,
            inputs,
            shadow,
            now,
        )
        if decision.action == "place":
            return self._place(case)
        if decision.action == "hold":
            return self._hold(case)
        return self._end(case)

    def _watched(
        self, profile: Profile, body: Mapping[str, Any], decision: Decision, now: float
    ) -> Profile:
        """Return the profile, with what a second run is for if the quality watch wants one."""
        if decision.action not in ("place", "hold"):
            return profile
        option = decision.option
        chosen = None if option is None else (option.pool, option.variant)
        part = len(self._ingest) / self._catalogue.partitions
        found = decision.candidates
        check = self._sampler.check_of(profile, body, found, chosen, part, now)
        return profile if check is None else replace(profile, quality=check)

    def _place(self, case: _Case) -> Effect:
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
            self._catalogue.pool_lane(option.pool, "direct"),
            profile.id.encode(),
            case.record.value,
            h.replaced(h.client_headers(case.record.headers), added),
            partition=profile.ingest_partition % self._catalogue.partitions,
        )
        records = [request, self._evidence(case, "placed", placement)]
        # After the evidence, which has the earlier loads.
        self._placer.count_placed(profile, decision, case.now)
        return Effect(case.record, records, subject=case)

    def _hold(self, case: _Case) -> Effect:
        profile, group = case.profile, case.decision.group or ""
        added = h.encoded(profile=profile, promised=case.decision.promised)
        added |= {h.GROUP: group.encode(), h.HELD_AT: repr(case.now).encode()}
        added |= self._telemetry.sent(case.record) | self._carried(case.record)
        held = Outgoing(
            self._catalogue.held,
            profile.id.encode(),
            case.record.value,
            h.replaced(h.client_headers(case.record.headers), added),
            partition=crc32(group.encode()) % self._catalogue.partitions,
        )
        return Effect(case.record, [held, self._evidence(case, "held", None)], subject=case)

    def _carried(self, record: Record) -> dict[str, bytes]:
        """Return what goes with a second run; a client's own headers of these names do not."""
        return {} if record.partition in self._ingest else h.carried(record.headers)

    def _end(self, case: _Case) -> Effect:
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
        result = self._evidence_writer.no_answer(case.record, profile, status, error, case.now)
        return Effect(case.record, [result, self._evidence(case, step, None)])

    def _evidence(self, case: _Case, step: Step, placement: Placement | None) -> Outgoing:
        decision = case.decision
        return self._evidence_writer.step(
            case.record,
            case.profile,
            step,
            case.now,
            view_version=self._situation.view.version,
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
