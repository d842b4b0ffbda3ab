"""Effects of decisions: a request on its lane, in the hold, or at its end, with the evidence."""

from zlib import crc32

from policies import Decision, Inputs
from streams.engine.log import Outgoing, Record
from streams.engine.stage import Effect
from streams.evidence.records import EvidenceWriter, told
from streams.evidence.step_details import StepDetails
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Placement, Profile, ResultError, Shadow, Tag, TextDigest
from topics.records import headers as h
from topics.records.evidence import Step
from topics.records.frozen import dataclass
from topics.records.result import Status


@dataclass(frozen=True, slots=True)
class RoutedCase:
    """A request with its decision. ``is_carrying``: its record is of an inner topic."""

    record: Record
    profile: Profile
    tags: dict[str, Tag]
    decision: Decision
    digest: TextDigest | None
    inputs: Inputs
    shadow: Shadow | None
    now: float
    is_carrying: bool


class RouteEffects:
    """Writes what follows from decisions."""

    def __init__(self, catalogue: Catalogue, telemetry: Telemetry) -> None:
        self._catalogue = catalogue
        self._telemetry = telemetry

    def of(self, case: RoutedCase, writer: EvidenceWriter, view_version: int) -> Effect:
        """Return the effect of a decision.

        Args:
            case: the decision.
            writer: of the policy and fleet that it was made by.
            view_version: of the view that it was made in.
        """
        if case.decision.action == "place":
            return self._place(case, writer, view_version)
        if case.decision.action == "hold":
            return self._hold(case, writer, view_version)
        return self._end(case, writer, view_version)

    def _place(self, case: RoutedCase, writer: EvidenceWriter, view_version: int) -> Effect:
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
        added |= self._telemetry.sent(case.record) | self._carried(case)
        request = Outgoing(
            self._catalogue.pool_lane(option.pool, "direct"),
            profile.id.encode(),
            case.record.value,
            h.replaced(h.client_headers(case.record.headers), added),
            partition=profile.ingest_partition % self._catalogue.partitions,
        )
        details = self._details(case, view_version, placement)
        evidence = writer.step(case.record, profile, "placed", case.now, **details)
        return Effect(case.record, [request, evidence], subject=case)

    def _hold(self, case: RoutedCase, writer: EvidenceWriter, view_version: int) -> Effect:
        profile, group = case.profile, case.decision.group or ""
        added = h.encoded(profile=profile, promised=case.decision.promised)
        added |= {h.GROUP: group.encode(), h.HELD_AT: repr(case.now).encode()}
        added |= self._telemetry.sent(case.record) | self._carried(case)
        held = Outgoing(
            self._catalogue.held,
            profile.id.encode(),
            case.record.value,
            h.replaced(h.client_headers(case.record.headers), added),
            partition=crc32(group.encode()) % self._catalogue.partitions,
        )
        details = self._details(case, view_version, None)
        evidence = writer.step(case.record, profile, "held", case.now, **details)
        return Effect(case.record, [held, evidence], subject=case)

    def _end(self, case: RoutedCase, writer: EvidenceWriter, view_version: int) -> Effect:
        decision, profile = case.decision, case.profile
        tried = {fallback.pool: fallback.reason for fallback in profile.fallbacks}
        refusals = decision.refusals
        if tried:
            refusals = (refusals or {}) | tried
        message = decision.message
        status: Status
        step: Step
        if decision.action == "expire":
            status = step = "expired"
            message = f"{message}{_before_routing(case)}"
        elif profile.attempt > 1:
            # It was accepted and tried, and no pool is left.
            status = step = "failed"
        else:
            status = step = "rejected"
        error = ResultError(decision.reason, message or "", refusals, decision.retry_at)
        result = writer.no_answer(case.record, profile, status, error, case.now)
        details = self._details(case, view_version, None) | {"message": message}
        evidence = writer.ended(case.record, profile, step, case.now, **details)
        return Effect(case.record, [result, *evidence])

    def _carried(self, case: RoutedCase) -> dict[str, bytes]:
        """Return what goes with it everywhere; a client's own headers of these names do not."""
        carried = h.carried(case.record.headers) if case.is_carrying else {}
        named = _critical(case.profile)
        return carried if named is None else carried | {h.CRITICAL: named}

    def _details(
        self, case: RoutedCase, view_version: int, placement: Placement | None
    ) -> StepDetails:
        decision, profile = case.decision, case.profile
        return {
            "view_version": view_version,
            "tags": case.tags,
            "profile": told(profile),
            "inputs": case.inputs,
            "candidates": decision.candidates,
            "shadow": case.shadow,
            "placement": placement,
            "assumed": decision.option is not None and decision.option.is_assumed,
            "promised": decision.promised,
            "footprint": decision.footprint,
            "reserved": profile.reserved if profile.attempt == 1 else None,
            "request_digest": case.digest,
            "reason": decision.reason,
            "message": decision.message,
        }


def _before_routing(case: RoutedCase) -> str:
    """Return where a request was until its deadline passed: with its client, here, or at a pool."""
    record, profile, now = case.record, case.profile, case.now
    if profile.fallbacks:
        last = profile.fallbacks[-1]
        return f" again, after {last.pool} had failed ({last.reason})"
    came_at = record.came_at(now)
    if came_at >= profile.deadline:
        return f"; it had passed when the request came to {record.partition.topic}"
    return f"; it waited {now - came_at:.1f} s for a router on {record.partition.topic}"


def _critical(profile: Profile) -> bytes | None:
    """Return the newest field of a profile that each reader must know; None if there is none."""
    limits = profile.max_cost_usd, profile.max_gco2
    if profile.answers > 1 and limits != (None, None):
        return h.ANSWERS_FIELD
    if profile.counts_energy:
        return h.ENERGY_FIELD
    if profile.max_gco2 is not None:
        return h.GCO2_FIELD
    return None if profile.quote is None else h.QUOTE_FIELD
