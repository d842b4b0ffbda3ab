"""The router: tags each request, decides on it, and sends it on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from policies.quality.sampling import Sampler
from policies.quality.verdict_state import KnownQuality
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
from streams.router.turns import Read, in_turn
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


@dataclass(slots=True)
class _Asked:
    """A request on its way through the steps of a poll; ``request`` is None if it comes back."""

    record: Record
    profile: Profile
    tags: dict[str, Tag] = field(default_factory=dict)
    request: InferenceRequest | None = None
    key: str | None = None
    home: Partition | None = None
    digest: TextDigest | None = None
    case: RoutedCase | None = None


_Step = Callable[[_Asked, float], _Asked | Effect]


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
        self._see_part()

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Read the last ids, or the accounts; decisions depend on no other state."""
        if partition.topic == self._catalogue.requests:
            self._ingest.add(partition)
            self._see_part()
            await self._duplicates.restore(partition, progress, log)
        elif partition.topic == self._catalogue.accounts:
            await self._accounts.restore(partition, log)

    def forget(self, partition: Partition) -> None:
        """Drop the ids, or the accounts, of a partition that is another's."""
        self._ingest.discard(partition)
        self._see_part()
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
            begun = [self._again(self._telemetry.entered(record), now) for record in records]
            effects = self._routed(begun, now)
        elif partition.topic == self._catalogue.accounts:
            self._accounts.hear(partition, records, now)
            begun = [self._account(self._telemetry.entered(record), now) for record in records]
            effects = [*self._routed(begun, now), *self._accounts.changes(partition)]
        else:
            records = [self._telemetry.admitted(record) for record in records]
            read = [self._read(record) for record in records]
            ids = [request.id for request in read if is_to_run(request)]
            await self._duplicates.check_first(partition, ids)
            turns = in_turn(records, read, self._duplicates.first)
            effects = self._routed([self._begin(*turn, now) for turn in turns], now)
            effects += self._duplicates.finished(partition, records[-1].offset + 1)
        return TransactionPlan(Progress(records[-1].offset + 1), effects)

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Dead-letter the request that the log refuses; an accepted one also gets a failure."""
        (letter,) = super().refused(effect, record, error)
        source, subject, now = effect.source, effect.subject, self._clock.now()
        writer, message = self._evidence_writer, f"{record.topic} refused the request: {error}"
        if source is not None and isinstance(subject, RoutedCase):
            profile, failure = subject.profile, ResultError("refused", message)
            letter.records += [
                writer.no_answer(source, profile, "failed", failure, now),
                *writer.ended(source, profile, "failed", now, reason="refused", message=message),
            ]
        elif source is not None and isinstance(subject, InferenceRequest):
            letter.records += writer.unservable(source, subject, "refused", message, now).records
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
        return is_to_run(self._read(record))

    def _routed(self, begun: Sequence[_Asked | Effect], now: float) -> list[Effect]:
        """Return the effects of what a poll brought, an effect of what has ended already.

        Each step is taken for all of them before the next one. Request by request each takes half
        as long again, since code and data of a step are out of the core's caches when it comes to
        the next (`python -m benchmarks.budget`, in one go).
        """
        after: list[_Asked | Effect] = list(begun)
        for step in (self._digest, self._decide, self._write):
            after = [e if isinstance(e, Effect) else self._try(step, e, now) for e in after]
        return [each for each in after if isinstance(each, Effect)]

    def _try(self, step: _Step, asked: _Asked, now: float) -> _Asked | Effect:
        try:
            return step(asked, now)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            if asked.request is None:
                return self._evidence_writer.set_aside(asked.record, error, now, is_accepted=True)
            self._accounts.release(asked.home, asked.profile)
            return self._evidence_writer.set_aside_request(asked.record, asked.request, error, now)

    def _again(self, record: Record, now: float) -> _Asked | Effect:
        """Begin with a request that was accepted once and comes back."""
        try:
            record.check_readable()
            here = self._situation
            profile = bind(h.read_profile(record.headers), here.policy)
            return _Asked(record, allow_again(profile, here.options, here.policy))
        except Exception as error:  # noqa: BLE001 - likewise
            return self._evidence_writer.set_aside(record, error, now, is_accepted=True)

    def _account(self, record: Record, now: float) -> _Asked | Effect:
        """Begin with a request that is counted here, or count what one has used."""
        try:
            record.check_readable()
            if is_settlement(record):
                self._accounts.settle(record)
                return Effect(record, [])
            came = self._accounts.as_it_came(record)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._evidence_writer.set_aside(record, error, now, is_accepted=False)
        request = self._read(came)
        if not isinstance(request, InferenceRequest):
            return self._evidence_writer.set_aside(came, request, now, is_accepted=False)
        try:
            key = self._gate.key_of(came, request)
            return self._accept(came, request, key, now, home=record.partition)
        except UnservableError as error:
            return self._evidence_writer.unservable(came, request, error.code, error.message, now)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._evidence_writer.set_aside_request(came, request, error, now)

    def _begin(
        self, record: Record, request: Read, first: int | None, now: float
    ) -> _Asked | Effect:
        """Begin with a record of a client."""
        if not isinstance(request, InferenceRequest):
            return self._evidence_writer.set_aside(record, request, now, is_accepted=False)
        try:
            if request.quote:
                return self._quote(record, request, now)
            if first is not None:
                return self._evidence_writer.duplicate(record, request, first, now)
            return self._admit(record, request, now)
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

    def _admit(self, record: Record, request: InferenceRequest, now: float) -> _Asked | Effect:
        try:
            key = self._gate.admit(record, request, self._part, now)
            if self._situation.policy.is_counted(request.tenant, key):
                trace = self._telemetry.sent(record)
                return self._accounts.passed_on(record, request, trace)
            return self._accept(record, request, key, now)
        except UnservableError as error:
            return self._evidence_writer.unservable(
                record, request, error.code, error.message, now, error.retry_at
            )

    def _accept(
        self,
        record: Record,
        request: InferenceRequest,
        key: str | None,
        now: float,
        home: Partition | None = None,
    ) -> _Asked:
        """Tag a request from outside; ``home`` has the accounts of its tenant.

        Raises:
            UnservableError: it is refused, whatever the fleet.
        """
        number = (home or record.partition).number
        wanted, quoted = self._desk.accepted(request, record.came_at(now))
        tagged = self._tag(record, wanted, key, self._situation, number, now)
        profile = bound_profile(tagged.profile, quoted)
        return _Asked(record, profile, tagged.tags, wanted, key, home)

    def _digest(self, asked: _Asked, _now: float) -> _Asked:
        if asked.request is not None:
            asked.digest = self._evidence_writer.digests.of_request(asked.request)
        return asked

    @property
    def _part(self) -> float:
        """This router's part of the ingest partitions."""
        return len(self._ingest) / self._catalogue.partitions

    def _see_part(self) -> None:
        """Have arrivals counted for the other routers' as well: a group has one window for all."""
        for here in (self._situation, self._shadow):
            if here is not None:
                here.arrivals.see_part(self._part)

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

    def _beside(self, asked: _Asked, now: float) -> Shadow | None:
        """Return what the second policy would do, if there is one."""
        here = self._shadow
        if here is None:
            return None
        record, request = asked.record, asked.request
        if request is None:
            return decide_beside(asked.profile, here, now)
        number = (asked.home or record.partition).number
        try:
            tagged = self._tag(record, request, asked.key, here, number, now)
        except UnservableError as error:
            return Shadow(here.policy.version, "reject", error.code)
        return decide_beside(tagged.profile, here, now)

    def _decide(self, asked: _Asked, now: float) -> _Asked:
        """Decide, and count a placement, which the next decision then finds in the loads."""
        profile, request, here = asked.profile, asked.request, self._situation
        shadow = self._beside(asked, now)
        decision, inputs = self._placer.decide(profile, now)
        if request is not None:
            if asked.home is not None:
                limit = request.output_tokens_max
                decision, asked.profile = self._accounts.reserve(
                    asked.home, profile, decision, inputs, here, limit, now
                )
            profile = self._watched(asked.profile, request.body, decision, now)
        asked.case = RoutedCase(
            asked.record,
            profile,
            asked.tags | decided_tags(profile, decision, here.options, now),
            decision,
            asked.digest,
            # It is written down later, when the loads are others.
            inputs.kept(),
            shadow,
            now,
            is_carrying=request is None,
        )
        if decision.action == "place":
            self._placer.count_placed(profile, decision, now)
        return asked

    def _write(self, asked: _Asked, _now: float) -> Effect:
        if asked.case is None:
            raise ValueError("nothing is decided")
        return self._effects.of(asked.case, self._evidence_writer, self._situation.view.version)

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
