"""The fold of evidence into the ledger: one for the live view and the exact one."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from streams.evidence.projection import EvidenceStep, decode_step
from streams.metrics.quantile_sketch import QuantileSketch
from topics.bounded_dict import BoundedDict
from topics.records.evidence import ENDS

# Open requests whose urgency is remembered, some 100 bytes each.
OPEN_MAX = 1_000_000
# Between a promise and what came, for rounding only.
COST_TOLERANCE_USD = 1e-9
_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))

Lane = Literal["interactive", "background", "unknown"]


class Line(NamedTuple):
    """The subject of a row. Interactive means latency-sensitive when it was decided on."""

    lane: Lane
    task: str
    tenant: str = ""
    """Empty where rows are of all tenants."""


class UsageEntry(NamedTuple):
    """The end of a request, its line, and what its tries cost that gave no answer."""

    line: Line
    step: EvidenceStep
    spent_usd: float = 0.0

    @property
    def at(self) -> float:
        """The time of the end, epoch seconds."""
        return self.step.at


class Endings:
    """Finds endings among the steps of a partition, in the order of its offsets.

    A request's urgency is in the evidence of its decision, which comes before; what its earlier
    tries cost is in that of each.
    """

    def __init__(self, open_max: int = OPEN_MAX, *, by_tenant: bool = False) -> None:
        self._by_tenant = by_tenant
        self._open: BoundedDict[str, bool] = BoundedDict(open_max)
        self._spent: BoundedDict[str, float] = BoundedDict(open_max)
        self.unreadable = 0

    def take(self, value: bytes | None) -> UsageEntry | None:
        """Process a record of evidence; return its ending, None if it is none."""
        try:
            step = decode_step(value or b"")
        except msgspec.MsgspecError:
            self.unreadable += 1
            return None
        if step.profile is not None:
            self._open.put(step.request_id, step.profile.latency_sensitive)
        spent_usd = 0.0 if step.spent is None else step.spent.usd
        if step.step not in ENDS:
            if spent_usd:
                earlier_usd = self._spent.get(step.request_id, 0.0)
                self._spent.put(step.request_id, earlier_usd + spent_usd)
            return None
        urgent = self._open.pop(step.request_id, None)
        lane: Lane = "unknown" if urgent is None else "interactive" if urgent else "background"
        spent_usd += self._spent.pop(step.request_id, 0.0)
        tenant = (step.tenant or "unknown") if self._by_tenant else ""
        return UsageEntry(Line(lane, step.task or "unknown", tenant), step, spent_usd)


def window_of(at: float, window_s: float) -> float:
    """Return the start of the tumbling window of a time, both epoch seconds."""
    return math.floor(at / window_s) * window_s


@dataclass(slots=True)
class UsageRow:
    """The counts of one line in one window."""

    statuses: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    pools: Counter[str] = field(default_factory=Counter)
    model_variants: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    spent_usd: float = 0.0
    """Of that, what tries cost that gave no answer."""
    held_promises: int = 0
    dearer_than_held: int = 0
    later_than_held: int = 0
    energy_wh: float = 0.0
    gco2: float = 0.0
    cached_tokens: int = 0
    context_tokens: QuantileSketch = field(default_factory=QuantileSketch)
    output_tokens: QuantileSketch = field(default_factory=QuantileSketch)
    tool_calls: QuantileSketch = field(default_factory=QuantileSketch)
    ttft_s: QuantileSketch = field(default_factory=QuantileSketch)
    tpot_s: QuantileSketch = field(default_factory=QuantileSketch)
    finish_s: QuantileSketch = field(default_factory=QuantileSketch)

    def add(self, ending: UsageEntry) -> None:
        """Count a request that ended."""
        step = ending.step
        status = ENDS[step.step]
        self.statuses[status] += 1
        self.retried += step.attempt > 1
        if status != "completed":
            self.failures[step.reason or "unknown"] += 1
        if step.placement is not None:
            self.pools[step.placement.pool] += 1
            self.model_variants[step.placement.model_variant] += 1
        if step.usage is not None:
            self.cached_tokens += step.usage.cached_tokens
            self.context_tokens.add(step.usage.input_tokens)
            self.output_tokens.add(step.usage.output_tokens)
            self.tool_calls.add(step.usage.tool_calls)
        self.energy_wh += step.energy_wh or 0.0
        if step.step == "executed":
            self.gco2 += step.gco2
        self.spent_usd += ending.spent_usd
        self.cost_usd += ending.spent_usd
        self._compare(step)
        if step.got is not None:
            self.cost_usd += step.got.cost_usd
            self.finish_s.add(step.got.finish_s)
            if step.got.ttft_s is not None:
                self.ttft_s.add(step.got.ttft_s)
            if step.got.tpot_s is not None:
                self.tpot_s.add(step.got.tpot_s)

    def _compare(self, step: EvidenceStep) -> None:
        """Hold what a request got against what it was promised when it was held."""
        promise, got = step.held_promise, step.got
        if promise is None or got is None:
            return
        self.held_promises += 1
        self.dearer_than_held += got.cost_usd > promise.cost_usd + COST_TOLERANCE_USD
        self.later_than_held += got.finish_s > promise.finish_s

    def figures(self) -> dict[str, Any]:
        """Return the figures of the row for JSON; null if there was no such event."""
        requests = self.statuses.total()
        read = self.context_tokens.total
        return {
            "requests": requests,
            **{status: self.statuses[status] for status in ENDS.values()},
            "retry_rate": round(self.retried / requests, 4) if requests else None,
            "context_tokens": _spread(self.context_tokens),
            "output_tokens": _spread(self.output_tokens),
            "cache_hit_rate": round(self.cached_tokens / read, 4) if read else None,
            "tool_calls_mean": _rounded(self.tool_calls.mean),
            "ttft_s": _spread(self.ttft_s),
            "tpot_s": _spread(self.tpot_s),
            "finish_s": _spread(self.finish_s),
            "pools": dict(sorted(self.pools.items())),
            "model_variants": dict(sorted(self.model_variants.items())),
            "failures": dict(sorted(self.failures.items())),
            "cost_usd": round(self.cost_usd, 9),
            "spent_usd": round(self.spent_usd, 9),
            "held_promises": self.held_promises,
            "dearer_than_held": self.dearer_than_held,
            "later_than_held": self.later_than_held,
            "energy_wh": round(self.energy_wh, 9),
            "gco2": round(self.gco2, 9),
        }


def _spread(values: QuantileSketch) -> dict[str, float | None]:
    return {name: _rounded(values.quantile(share)) for name, share in _QUANTILES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def as_json(rows: dict[tuple[float, Line], UsageRow]) -> list[dict[str, Any]]:
    """Return rows for JSON by start of window and line, the newest window first."""
    ordered = sorted(rows, key=lambda key: (-key[0], key[1]))
    return [
        {
            "from": start,
            "lane": line.lane,
            "task": line.task,
            "tenant": line.tenant or None,
            **rows[start, line].figures(),
        }
        for start, line in ordered
    ]
