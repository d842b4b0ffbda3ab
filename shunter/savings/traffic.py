"""The traffic of a span of time, from its evidence alone: what was asked, paid and missed."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from pydantic import ValidationError

from policies.backtest.workload import Arrival
from shunter.logs.reading import TrailRow
from streams.evidence.projection import AskedStep, SeenProfile, decode_step
from streams.evidence.slo_outcomes import outcomes
from topics import BadRecordError, Evidence, InferenceRequest, Profile, decode
from topics.records.evidence import ENDS
from topics.records.request import Constraints, Hints, Slo

URL_OF_OPERATION = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
EXAMPLES_MAX = 3
NONE = "(none)"
SKEW_MAX_S = 60.0
"""A client's clock that is off by more tells nothing of when its request came."""


@dataclass(slots=True)
class Sources:
    """The evidence behind a figure: how many records, where they stand, and some requests.

    ``spans`` are the first and last offset in each partition of the evidence topic.
    """

    records: int = 0
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, row: TrailRow, request_id: str) -> None:
        """Count a record."""
        self.records += 1
        first, last = self.spans.get(row.partition, (row.offset, row.offset))
        self.spans[row.partition] = min(first, row.offset), max(last, row.offset)
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(request_id)


@dataclass(slots=True)
class Bill:
    """The bill of a class, pool or tenant: what it paid and got. Money in US dollars.

    ``judged`` are the requests that had an SLO, ``kept`` those of them that met it.
    """

    requests: int = 0
    completed: int = 0
    paid_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    judged: int = 0
    kept: int = 0
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True, slots=True, order=True)
class Miss:
    """An objective of a class that was missed, and why."""

    task: str
    objective: str
    why: str


@dataclass(slots=True)
class _Asked:
    """A request that was decided on. ``wanted`` is of its last decision."""

    arrival_s: float
    arrival: Arrival
    wanted: SeenProfile
    is_background: bool
    tries: int = 1


@dataclass(slots=True)
class EvidenceTraffic:
    """The requests that ended from ``start`` until before ``end``, epoch seconds.

    ``bills`` are by dimension (``class``, ``pool``, ``tenant``) and name. What no backtest can
    repeat is counted in ``left_out`` by its reason; it stands in the bills all the same.
    """

    start: float
    end: float
    total: Bill = field(default_factory=Bill)
    bills: dict[str, dict[str, Bill]] = field(
        default_factory=lambda: {"class": {}, "pool": {}, "tenant": {}}
    )
    misses: dict[Miss, Sources] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    """Requests among the arrivals that got no answer; their replies have the expected length."""
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _arrivals: list[tuple[float, Arrival]] = field(default_factory=list)

    def add(self, row: TrailRow) -> None:
        """Count a record of evidence; those of a request come in the order they were written."""
        value = row.value or b""
        try:
            step = decode_step(value)
        except msgspec.MsgspecError:
            self.left_out["evidence that can't be read"] += 1
            return
        if step.at >= self.end:
            return
        if step.profile is not None and step.step != "released":
            self._decided(step, step.profile, value)
        if step.spent is not None and step.at >= self.start:
            for bill in self._bills_of(step):
                # What tries cost that gave no answer; that of a further try is no end.
                bill.paid_usd += step.spent.usd
                if step.step not in ENDS:
                    bill.sources.add(row, step.request_id)
        if step.step in ENDS:
            asked = self._asked.pop(step.request_id, None)
            if step.at >= self.start:
                self._ended(step, row, asked)

    @property
    def first_at(self) -> float:
        """The time at which the first of the arrivals came, epoch seconds; 0 without any."""
        return min((at for at, _ in self._arrivals), default=0.0)

    def arrivals(self) -> list[Arrival]:
        """Return the requests in the order in which they came, the first at zero."""
        first_at = self.first_at
        ordered = sorted(self._arrivals, key=lambda pair: pair[0])
        return [
            replace(arrival, row=row, arrival_s=at - first_at)
            for row, (at, arrival) in enumerate(ordered)
        ]

    @property
    def open(self) -> int:
        """Requests that were decided on and have no end."""
        return len(self._asked)

    def _decided(self, step: AskedStep, wanted: SeenProfile, value: bytes) -> None:
        known = self._asked.get(step.request_id)
        if known is not None:
            known.wanted, known.tries = wanted, max(known.tries, step.attempt)
            return
        try:
            evidence = decode(Evidence, value)
            profile = evidence.profile
            if profile is None:
                return
            arrival = _arrival(profile, evidence)
        except (BadRecordError, ValidationError):
            self.left_out["evidence that can't be read"] += 1
            return
        self._asked[step.request_id] = _Asked(
            min(max(profile.created_at, profile.routed_at - SKEW_MAX_S), profile.routed_at),
            arrival,
            wanted,
            profile.is_background,
            step.attempt,
        )

    def _bills_of(self, step: AskedStep) -> list[Bill]:
        place = step.placement
        names = {
            "class": step.task or NONE,
            "pool": place.pool if place else NONE,
            "tenant": step.tenant or NONE,
        }
        return [
            self.total,
            *(self.bills[by].setdefault(name, Bill()) for by, name in names.items()),
        ]

    def _ended(self, step: AskedStep, row: TrailRow, asked: _Asked | None) -> None:
        kept = outcomes(step, asked.wanted if asked else None)
        for bill in self._bills_of(step):
            _charge(bill, step, kept)
            bill.sources.add(row, step.request_id)
        for objective, is_kept in kept.items():
            if not is_kept and objective != "all":
                miss = Miss(step.task or NONE, objective, _why(step, asked, objective))
                self.misses.setdefault(miss, Sources()).add(row, step.request_id)
        self._keep(step, asked)

    def _keep(self, step: AskedStep, asked: _Asked | None) -> None:
        """Keep the request for backtests, or count why it can't be."""
        if asked is None:
            self.left_out["without a decision in the evidence"] += 1
        elif asked.is_background:
            self.left_out["second runs of the quality watch"] += 1
        elif step.step == "cancelled":
            self.left_out["cancelled"] += 1
        else:
            arrival, usage = asked.arrival, step.usage
            if usage is None:
                self.unanswered += 1
            else:
                arrival = arrival.counted(usage.input_tokens, usage.output_tokens)
            self._arrivals.append((asked.arrival_s, arrival))


def _charge(bill: Bill, step: AskedStep, kept: dict[str, bool]) -> None:
    bill.requests += 1
    bill.completed += step.step == "executed"
    if step.got is not None:
        bill.paid_usd += step.got.cost_usd
    if step.usage is not None:
        bill.input_tokens += step.usage.input_tokens
        bill.output_tokens += step.usage.output_tokens
    if kept:
        bill.judged += 1
        bill.kept += kept["all"]


def _why(step: AskedStep, asked: _Asked | None, objective: str) -> str:
    """Return the first that holds: no answer, another try, a late promise, a broken promise."""
    if step.step != "executed" or asked is None:
        return f"{step.step}: {step.reason}" if step.reason else step.step
    if asked.tries > 1:
        return "needed another try"
    promised, wanted = step.promised, asked.wanted
    if promised is None:
        return "served late"
    late = {
        "ttft": _is_over(promised.ttft_s, wanted.ttft_s),
        "tpot": _is_over(promised.tpot_s, wanted.tpot_s),
        "deadline": _is_over(promised.finish_s, wanted.deadline - wanted.created_at),
    }
    return "no place was faster" if late[objective] else "served later than promised"


def _is_over(seconds: float | None, limit_s: float | None) -> bool:
    return seconds is not None and limit_s is not None and seconds > limit_s


def _asked(profile: Profile) -> dict[str, Any]:
    """Return a body's members that ask for as many answers; what they are of is not in evidence."""
    replies = {"n": profile.replies} if profile.replies > 1 else {}
    if profile.prompts == 1:
        return replies
    name = "prompt" if profile.operation == "completions" else "input"
    return replies | {name: [""] * profile.prompts}


def _arrival(profile: Profile, evidence: Evidence) -> Arrival:
    """Return a request that is tagged as this one was; sessions are not in evidence."""
    tags = evidence.tags or {}
    output, batchable = tags.get("output_length"), tags.get("batchability")
    by_client = output is not None and output.source == "client"
    is_certain = by_client and output is not None and output.confidence >= 1
    precisions = ["any"] if profile.precisions is None else list(profile.precisions)
    request = InferenceRequest(
        id=profile.id,
        body={"model": profile.model}
        | ({"max_tokens": profile.output_tokens} if by_client and not is_certain else {})
        | _asked(profile),
        url=URL_OF_OPERATION.get(profile.operation, f"/v1/{profile.operation}"),
        model=profile.model,
        task=profile.task,
        tenant=profile.tenant,
        # Seconds from its arrival, as an arrival has it.
        deadline=max(0.0, profile.deadline - profile.created_at),
        service_tier=profile.tier,  # type: ignore[arg-type]  # it is checked
        slo=Slo(ttft_ms=_milliseconds(profile.ttft_s), tpot_ms=_milliseconds(profile.tpot_s)),
        constraints=Constraints(
            regions=None if profile.regions is None else list(profile.regions),
            precisions=precisions if profile.any_quality else None,
            pools=None if profile.pools is None else list(profile.pools),
            exclude_pools=list(profile.exclude_pools),
            data_class=profile.data_class,
            labels=profile.labels,
            max_cost_usd=profile.max_cost_usd,
            max_gco2=profile.max_gco2,
        ),
        hints=Hints(
            output_tokens=profile.output_tokens if is_certain else None,
            batchable=profile.batchable
            if batchable is not None and batchable.source == "client"
            else None,
        ),
    )
    return Arrival.of(profile, request)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
