"""Records that more than one stage writes: results, evidence, dead letters, tombstones."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

from streams.engine.log import Outgoing, Record
from streams.engine.stage import Effect
from streams.engine.text_digests import Digests
from streams.evidence.dead_letters import as_bad_record, dead_letter
from streams.evidence.step_details import (
    StepDetails,
    charge_of_tries,
    cost_of_tries,
    usage_of_tries,
    used_by,
)
from topics import (
    Catalogue,
    Comparison,
    Evidence,
    InferenceRequest,
    Profile,
    QuoteOffer,
    QuoteQuestion,
    Result,
    ResultError,
    Source,
    Timing,
    VariantQuality,
    encode,
)
from topics.records import headers as h
from topics.records.evidence import Step
from topics.records.evidence_bytes import evidence_bytes
from topics.records.money import Settlement
from topics.records.request import ID_CHARACTERS_MAX
from topics.records.result import Status
from topics.wire.codec import decode_json_object
from topics.wire.errors import BadRecordError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvidenceWriter:
    """Writes for one instance, whose name is in every piece of evidence."""

    catalogue: Catalogue
    writer: str
    digests: Digests
    policy_version: str | None = None
    fleet_version: str | None = None

    def step(
        self,
        record: Record,
        profile: Profile,
        step: Step,
        now: float,
        /,
        **details: Unpack[StepDetails],
    ) -> Outgoing:
        """Return the evidence of one step of a request, as a record keyed by request."""
        return self._of_profile(record, profile, step, now, **details)

    def ended(
        self,
        record: Record,
        profile: Profile,
        step: Step,
        now: float,
        /,
        **details: Unpack[StepDetails],
    ) -> list[Outgoing]:
        """Return the evidence of a step that ends a request, and what settles its budgets.

        Where it tells no charge, that is the charge of the tries before.
        """
        details.setdefault("charge", charge_of_tries(profile))
        if profile.reserved is None:
            return [self.step(record, profile, step, now, **details)]
        settled = Settlement(profile.reserved, used_by(profile, details))
        evidence = self._of_profile(record, profile, step, now, settled=settled, **details)
        settlement = Outgoing(
            self.catalogue.accounts,
            profile.id.encode(),
            None,
            [(h.SETTLED, encode(settled))],
            partition=settled.reserved.home,
        )
        return [evidence, settlement]

    def _of_profile(
        self, record: Record, profile: Profile, step: Step, now: float, /, **fields: Any
    ) -> Outgoing:
        return self._evidence(
            record,
            profile.id,
            step,
            now,
            tenant=profile.tenant,
            task=profile.task,
            model=profile.model,
            attempt=profile.attempt,
            **fields,
        )

    def _evidence(
        self, record: Record, request_id: str, step: Step, now: float, **fields: Any
    ) -> Outgoing:
        """Return evidence as a record keyed by request, with the common fields."""
        evidence = Evidence(
            request_id=request_id,
            step=step,
            at=now,
            writer=self.writer,
            source=source_of(record),
            trace_id=record.trace_id,
            policy_version=self.policy_version,
            fleet_version=self.fleet_version,
            **fields,
        )
        return self._record(evidence, record)

    def _record(self, evidence: Evidence, source: Record) -> Outgoing:
        key = evidence.request_id.encode()
        value = evidence_bytes(evidence)
        return Outgoing(self.catalogue.evidence, key, value, payload=evidence, source=source)

    def result(self, result: Result) -> Outgoing:
        """Return a result as a record, keyed by request.

        One without an answer goes without the client's metadata where it is too large with it.
        """
        key, spare = result.id.encode(), None
        if result.status != "completed" and result.metadata is not None:
            spare = partial(self.result, replace(result, metadata=None))
        return Outgoing(self.catalogue.results, key, encode(result), payload=result, spare=spare)

    def no_answer(
        self,
        record: Record,
        profile: Profile,
        status: Status,
        error: ResultError,
        now: float,
    ) -> Outgoing:
        """Return the result of a request that ends without an answer."""
        return self.result(
            Result(
                id=profile.id,
                status=status,
                timing=Timing(profile.created_at, routed_at=profile.routed_at, finished_at=now),
                error=error,
                usage=usage_of_tries(profile.spent),
                cost=cost_of_tries(profile),
                trace_id=record.trace_id,
                metadata=None if profile.is_background else metadata_of(record.value),
                reference_of=profile.of,
                model=profile.model,
            )
        )

    def unservable(
        self,
        record: Record,
        request: InferenceRequest,
        code: str,
        message: str,
        now: float,
        retry_at: float | None = None,
    ) -> Effect:
        """Return the rejection of a request for which no profile can be made."""
        created_at = record.came_at(now) if request.created_at is None else request.created_at
        trace_id = record.trace_id
        result = Result(
            id=request.id,
            status="rejected",
            timing=Timing(created_at, routed_at=now, finished_at=now),
            error=ResultError(code, message, retry_at=retry_at),
            trace_id=trace_id,
            metadata=request.metadata,
            model=request.model,
        )
        evidence = self._unprofiled(record, request, "rejected", code, message, now)
        return Effect(record, [self.result(result), evidence])

    def quoted(
        self,
        record: Record,
        question: QuoteQuestion,
        offers: tuple[QuoteOffer, ...],
        error: ResultError | None,
        now: float,
    ) -> Outgoing:
        """Return the evidence of the answer to a question: its menu, or why it got none."""
        first = question.requests[0]
        return self._evidence(
            record,
            question.id,
            "quoted",
            now,
            tenant=first.tenant,
            model=first.model,
            offers=offers,
            reason=None if error is None else error.code,
            message=None if error is None else error.message,
        )

    def duplicate(
        self, record: Record, request: InferenceRequest, first_offset: int, now: float
    ) -> Effect:
        """Return the evidence of a duplicate of the request at ``first_offset``; no result."""
        topic, partition = record.partition
        message = f"the first request of this id is {topic}/{partition}@{first_offset}"
        evidence = self._unprofiled(record, request, "duplicate", "same_id", message, now)
        return Effect(record, [evidence])

    def cancel_requested(self, record: Record, request_id: str, now: float) -> Outgoing:
        """Return the evidence that a client cancelled a request, known or not.

        The reason is left out: it is the client's own text.
        """
        # No fleet and no policy takes part, so that it names neither.
        return self._record(
            Evidence(
                request_id=request_id,
                step="cancel_requested",
                at=now,
                writer=self.writer,
                source=source_of(record),
                trace_id=record.trace_id,
            ),
            record,
        )

    def verdict(
        self, record: Record, comparison: Comparison, state: VariantQuality, now: float
    ) -> Outgoing:
        """Return the evidence of a new verdict on a variant, by the comparison that led to it."""
        allowed = f"{comparison.within:g} is allowed"
        message = f"mean difference {state.recent:.3f} lately, {allowed}, {state.samples} samples"
        return self._record(
            Evidence(
                request_id=comparison.id,
                step="drifted" if state.verdict == "drifted" else "as_reference",
                at=now,
                writer=self.writer,
                source=source_of(record),
                task=comparison.task,
                trace_id=record.trace_id,
                comparison=comparison,
                variant_quality=state,
                message=message,
            ),
            record,
        )

    def _unprofiled(
        self,
        record: Record,
        request: InferenceRequest,
        step: Step,
        reason: str,
        message: str,
        now: float,
    ) -> Outgoing:
        return self._evidence(
            record,
            request.id,
            step,
            now,
            tenant=request.tenant,
            task=request.task,
            model=request.model,
            request_digest=self.digests.of_request(request),
            reason=reason,
            message=message,
        )

    def set_aside(
        self, record: Record, error: BaseException, now: float, *, is_accepted: bool
    ) -> Effect:
        """Return the dead letter of a record that can't be read or handled, whatever the error.

        Args:
            record: as it came.
            error: from reading or handling it.
            now: epoch seconds.
            is_accepted: True for an inner topic: its record is a request that was accepted, so
                that it fails besides, where it says which request it is.

        Raises:
            LogError: the error is one of the log, which is no fault of the record.
        """
        known = as_bad_record(error)
        letter = self.dead_letter(record, known, stage=known.stage, reason=known.reason, now=now)
        if is_accepted and record.unreadable is None:
            try:
                profile = h.read_profile(record.headers)
                failure = ResultError(known.reason, known.message)
                said: StepDetails = {"reason": known.reason, "message": known.message}
                letter.records += [
                    self.no_answer(record, profile, "failed", failure, now),
                    *self.ended(record, profile, "failed", now, **said),
                ]
            except Exception as unknown:  # noqa: BLE001 - what it says of itself may be the fault
                logger.warning("%s says of no request: %s", source_of(record), type(unknown))
        return letter

    def set_aside_request(
        self, record: Record, request: InferenceRequest, error: Exception, now: float
    ) -> Effect:
        """Return the dead letter of a request that can't be handled, and its rejection.

        Raises:
            LogError: as ``set_aside``.
        """
        known = as_bad_record(error)
        letter = self.dead_letter(record, known, stage=known.stage, reason=known.reason, now=now)
        rejection = self.unservable(record, request, known.reason, known.message, now)
        letter.records += rejection.records
        return letter

    def dead_letter(
        self, record: Record, error: Exception, *, stage: str, reason: str, now: float
    ) -> Effect:
        """Return a record unchanged, with the reason why it is unusable, and the evidence.

        If it is too large with the reason added, its key, value and headers are left out.
        """
        message = getattr(error, "message", None) or str(error)
        letter = dead_letter(self.catalogue, record, error=error, stage=stage, reason=reason)
        evidence = self._evidence(
            record, _name_of(record), "dead_lettered", now, reason=reason, message=message
        )
        return Effect(record, [letter, evidence], is_dead_letter=True)


def told(profile: Profile) -> Profile:
    """Return the profile for the evidence: no client's session, and no money beside a decision."""
    if profile.session is None and profile.reserved is None and profile.spent is None:
        return profile
    return replace(profile, session=None, reserved=None, spent=None)


def source_of(record: Record) -> Source:
    """Return a record's position."""
    return Source(record.partition.topic, record.partition.number, record.offset)


def metadata_of(value: bytes | None) -> object:
    """Return the metadata of a request that has been parsed."""
    try:
        return decode_json_object(value or b"{}").get("metadata")
    except BadRecordError:
        return None


def _name_of(record: Record) -> str:
    """Return the key of a record that has no readable id, else its position."""
    # A key may be as large as a record, and escaping its bytes makes it larger.
    if record.key and len(record.key) <= ID_CHARACTERS_MAX:
        return record.key.decode("utf-8", "backslashreplace")
    return f"{record.partition.topic}/{record.partition.number}/{record.offset}"
