"""The router: tags each request, decides on it, and sends it on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies import (
    Decision,
    Placer,
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
from streams.evidence.records import EvidenceWriter
from streams.router.accounts import Accounts, is_settlement
from streams.router.deduplication import Duplicates
from streams.router.effects import RoutedCase, RouteEffects
from streams.router.gate import Gate
from streams.router.quote_desk import QuoteDesk, bound_profile, is_to_run
from streams.tracing.telemetry import Telemetry
from topics import (
    InferenceRequest,
    Profile,
    Progress,
    ResultError,
    Shadow,
    Tag,
    TextDigest,
    parse_request,
)
from topics.records import headers as h
from topics.records.quote import question_of


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
        quote_secret: str | None = None,
    ) -> None:
        super().__init__(evidence_writer, clock)
        self._gate = Gate(situation.policy, key_secret)
        self._desk = QuoteDesk(quote_secret)
        self._tokens = tokens or TokenCounter({})
        self._placer = Placer(situation, Shares(situation.policy))
        self._shadow: Situation | None = None
        self._telemetry = telemetry
        self._request_bytes_max = request_bytes_max
        self._duplicates = Duplicates(
            evidence_writer.catalogue.seen_ids, duplicate_window_records, self._is_request
        )
        self._ingest: set[Partition] = set()
        self._sampler = Sampler(situation.policy, quality or KnownQuality())
        self._accounts = Accounts(self._catalogue)
        self._effects = RouteEffects(self._catalogue, telemetry)

    @property
    def _situation(self) -> Situation:
        return self._placer.situation

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.router_group

    @property
    def topics(self) -> Sequence[str]:
        """Ingest, the reroutes, and the accounts."""
        return (self._catalogue.requests, self._catalogue.reroutes, self._catalogue.accounts)

    def take_context(self, terms: DecisionContext) -> None:
        """Adopt new terms. Only while no work is in flight."""
        self._placer.take(terms.situation)
        self._evidence_writer, self._tokens = terms.evidence_writer, terms.tokens
        self._shadow = terms.shadow
        self._gate.take(terms.situation.policy)
        self._sampler.policy = terms.situation.policy

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Read the last ids, or the accounts; decisions depend on no other state."""
        if partition.topic == self._catalogue.requests:
            self._ingest.add(partition)
            await self._duplicates.restore(partition, progress, log)
        elif partition.topic == self._catalogue.accounts:
            await self._accounts.restore(partition, log)

    def forget(self, partition: Partition) -> None:
        """Drop the ids, or the accounts, of a partition that is another's."""
        self._ingest.discard(partition)
        self._duplicates.forget(partition)
        if partition.topic == self._catalogue.accounts:
            self._accounts.forget(partition)

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
        elif partition.topic == self._catalogue.accounts:
            effects = [self._account(self._telemetry.entered(r), now) for r in records]
            effects += self._accounts.changes(partition, now)
        else:
            records = [self._telemetry.admitted(record) for record in records]
            read = [self._read(record) for record in records]
            ids = [request.id for request in read if is_to_run(request)]
            await self._duplicates.check_first(partition, ids)
            effects = [self._route(*each, now) for each in zip(records, read, strict=True)]
            effects += self._duplicates.finished(partition, records[-1].offset + 1)
        return TransactionPlan(Progress(records[-1].offset + 1), effects)

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Dead-letter the request that the log refuses; an accepted one also gets a failure."""
        (letter,) = super().refused(effect, record, error)
        source = effect.source
        if source is not None and isinstance(effect.subject, RoutedCase):
            profile, now = effect.subject.profile, self._clock.now()
            failure = ResultError("refused", f"{record.topic} refused the request: {error}")
            letter.records += [
                self._evidence_writer.no_answer(source, profile, "failed", failure, now),
                *self._evidence_writer.ended(
                    source, profile, "failed", now, reason=failure.code, message=failure.message
                ),
            ]
        return [letter]

    def _read(self, record: Record) -> InferenceRequest | Exception:
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
        return is_to_run(self._read(record))

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

    def _account(self, record: Record, now: float) -> Effect:
        """Decide on a request that is counted here, or count what one has used."""
        try:
            record.check_readable()
            if is_settlement(record):
                self._accounts.settle(record)
                return Effect(record, [])
            came = self._accounts.as_it_came(record)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return self._evidence_writer.set_aside(record, error, now, is_accepted=False)
        request = self._read(came)
        if not isinstance(request, InferenceRequest):
            return self._evidence_writer.set_aside(came, request, now, is_accepted=False)
        try:
            return self._decide_on(came, request, now, home=record.partition)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._evidence_writer.set_aside_request(came, request, error, now)

    def _route(self, record: Record, request: InferenceRequest | Exception, now: float) -> Effect:
        if not isinstance(request, InferenceRequest):
            return self._evidence_writer.set_aside(record, request, now, is_accepted=False)
        try:
            if request.quote:
                return self._quote(record, request, now)
            return self._route_request(record, request, now)
        except Exception as error:  # noqa: BLE001 - likewise
            if request.quote:
                return self._evidence_writer.set_aside(record, error, now, is_accepted=False)
            return self._evidence_writer.set_aside_request(record, request, error, now)

    def _quote(self, record: Record, request: InferenceRequest, now: float) -> Effect:
        question, writer, here = question_of(request), self._evidence_writer, self._situation
        try:
            key = self._gate.admit(record, request, self._part, now)
        except UnservableError as error:
            return self._desk.refusal(record, question, error, writer, now)
        return self._desk.answer(record, question, here, writer, self._tokens, now, key)

    def _route_request(self, record: Record, request: InferenceRequest, now: float) -> Effect:
        first = self._duplicates.first(record, request.id)
        if first is not None:
            return self._evidence_writer.duplicate(record, request, first, now)
        try:
            key = self._gate.admit(record, request, self._part, now)
        except UnservableError as error:
            return self._evidence_writer.unservable(
                record, request, error.code, error.message, now, error.retry_at
            )
        if self._situation.policy.budgets_of(request.tenant, key):
            trace = self._telemetry.sent(record)
            return self._accounts.passed_on(record, request.id, request.tenant, trace)
        return self._decide_on(record, request, now)

    def _decide_on(
        self,
        record: Record,
        request: InferenceRequest,
        now: float,
        home: Partition | None = None,
    ) -> Effect:
        """Return the effect of a request from outside; ``home`` has the accounts of its tenant."""
        number = (home or record.partition).number
        try:
            key = self._gate.key_of(record, request)
            wanted, quoted = self._desk.accepted(request, min(record.came_at(now), now))
            tagged = self._tag(record, wanted, key, self._situation, number, now)
        except UnservableError as error:
            return self._evidence_writer.unservable(record, request, error.code, error.message, now)
        digest = self._evidence_writer.digests.of_request(request)
        shadow = self._beside(record, wanted, key, number, now)
        profile = bound_profile(tagged.profile, quoted)
        asked = (profile, tagged.tags, digest, shadow, now)
        return self._decide(record, *asked, request, home)

    @property
    def _part(self) -> float:
        """This router's part of the ingest partitions."""
        return len(self._ingest) / self._catalogue.partitions

    def _tag(
        self,
        record: Record,
        request: InferenceRequest,
        key: str | None,
        here: Situation,
        number: int,
        now: float,
    ) -> Tagged:
        return tag(
            request,
            here.policy,
            received_at=record.came_at(now),
            now=now,
            ingest_partition=number,
            count=self._tokens.of(request),
            lengths=self._situation.view.lengths,
            serving=here.options.serving.get(request.model),
            key=key,
        )

    def _beside(
        self,
        record: Record,
        request: InferenceRequest,
        key: str | None,
        number: int,
        now: float,
    ) -> Shadow | None:
        """Return what the second policy would do, if there is one."""
        here = self._shadow
        if here is None:
            return None
        try:
            tagged = self._tag(record, request, key, here, number, now)
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
        request: InferenceRequest | None = None,
        home: Partition | None = None,
    ) -> Effect:
        decision, inputs = self._placer.decide(profile, now)
        if request is not None:
            if home is not None:
                decision, profile = self._accounts.reserve(
                    home,
                    profile,
                    decision,
                    inputs,
                    self._situation,
                    request.output_tokens_max,
                    now,
                )
            profile = self._watched(profile, request.body, decision, now)
        case = RoutedCase(
            record,
            profile,
            tags | decided_tags(profile, decision, self._situation.options, now),
            decision,
            digest,
            inputs,
            shadow,
            now,
            is_carrying=request is None,
        )
        effect = self._effects.of(case, self._evidence_writer, self._situation.view.version)
        if decision.action == "place":
            # After the evidence, which has the earlier loads.
            self._placer.count_placed(profile, decision, now)
        return effect

    def _watched(
        self, profile: Profile, body: Mapping[str, Any], decision: Decision, now: float
    ) -> Profile:
        """Return the profile, with what a second run is for if the quality watch wants one."""
        if decision.action not in ("place", "hold"):
            return profile
        option = decision.option
        chosen = None if option is None else (option.pool, option.variant)
        found = decision.candidates
        check = self._sampler.check_of(profile, body, found, chosen, self._part, now)
        return profile if check is None else replace(profile, quality=check)
