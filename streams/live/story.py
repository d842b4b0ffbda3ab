"""The story of a request, built from its evidence, for both the terminal and the page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from policies.scoring.reasons import has_choice, reasons
from topics import Candidate, Envelope, Evidence, Footprint, Placement, Shadow, Usage
from topics.iso_time import iso_time

FIGURES = ("cost $", "TTFT s", "finish s", "chance")
# Explanations of reason codes whose names alone are unclear.
IN_WORDS = {
    "only_candidate": "nothing else could serve it",
    "cheapest_in_time": "the cheapest likely enough to be in time",
    "cheapest_with_failures": "the cheapest likely enough to be in time, with what failures cost",
    "cheaper_hour": "waiting for a cheaper hour is the cheapest likely enough to be in time",
    "waiting_is_cheapest": "waiting for a batch is the cheapest likely enough to be in time",
    "best_chance": "none is likely enough to be in time; this one has the best chance",
    "leaves_scarce_places": "the cheapest that leaves scarce places to those who need them",
    "first_in_order": "the first of the policy's order, before its price",
    "next_in_order": "no pool before it in the policy's order is likely to be in time",
    "later_in_order": "cheaper, and later in the policy's order",
    "preferred_by_extension": "the policy's extensions prefer it to cheaper ones",
    "full": "the batch is full",
    "slack": "the earliest deadline leaves no time to wait on",
    "window": "the batch window closed",
    "idle": "the pool was idle and nobody else was expected",
    "pool_available": "a pool became available",
    "pool_unavailable": "no pool that may serve it has a live worker",
    "power_limit": "each pool that may serve it draws all the power that it or its site may",
    "circuit_open": "each pool that may serve it fails at present",
    "connect": "its server can't be reached",
    "connection_lost": "its server broke off",
    "timeout": "its server took too long",
    "overloaded": "its server has too much to do",
    "unavailable": "its server is not available",
    "deadline_passed": "its deadline passed",
    "no_pool": "no pool may serve it",
    "cancelled": "the client did not want it any more",
    "same_id": "a request of this id came before; this one is not served",
    "unknown_model": "the fleet does not declare the model",
}

Facts = tuple[tuple[str, str], ...]
"""Labels and values; a value may have several lines."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A small table: ``labels`` columns of words, then figures. ``chosen`` is a row, if any."""

    headings: tuple[str, ...]
    labels: int
    rows: tuple[tuple[str, ...], ...]
    chosen: int | None = None


@dataclass(frozen=True, slots=True)
class StoryStep:
    """One step. ``clock`` is the time of day (UTC), ``since_s`` counts from the first step.

    ``reason`` is a stable code, ``words`` explain it if the code alone does not.
    """

    clock: str
    since_s: float
    step: str
    reason: str | None
    words: str | None
    facts: Facts
    envelopes: Grid | None
    candidates: Grid | None
    origin: Facts


@dataclass(frozen=True, slots=True)
class Story:
    """The steps of one request, earliest first. ``versions`` is empty if they changed."""

    request_id: str
    facts: Facts
    steps: tuple[StoryStep, ...]
    versions: str


def tell(evidence: Sequence[Evidence]) -> Story:
    """Return the story of a request from its evidence, in any order, at least one piece."""
    steps = sorted(evidence, key=lambda step: step.at)
    policies = {step.policy_version for step in steps if step.policy_version}
    fleets = {step.fleet_version for step in steps if step.fleet_version}
    # If versions changed on the way, each step shows its own.
    is_steady = len(policies) <= 1 and len(fleets) <= 1
    return Story(
        steps[0].request_id,
        _title(steps),
        tuple(_told(step, steps[0].at, show_versions=not is_steady) for step in steps),
        _versions(_any(policies), _any(fleets)) if is_steady else "",
    )


def _title(steps: Sequence[Evidence]) -> Facts:
    return _known(
        ("tenant", _any(step.tenant for step in steps)),
        ("task", _any(step.task for step in steps)),
        ("model", _any(step.model for step in steps)),
        ("trace", _any(step.trace_id for step in steps)),
        ("first step", iso_time(steps[0].at)),
    )


def _known(*facts: tuple[str, str | None]) -> Facts:
    return tuple((label, value) for label, value in facts if value)


def _versions(policy: str | None, fleet: str | None) -> str:
    known = [f"policy {policy}"] if policy else []
    return " · ".join([*known, f"fleet {fleet}"] if fleet else known)


def _any(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _told(step: Evidence, first_at: float, *, show_versions: bool) -> StoryStep:
    source, fallback, leader = step.source, step.fallback, step.decided_with
    versions = _versions(step.policy_version, step.fleet_version) if show_versions else ""
    return StoryStep(
        clock=f"{datetime.fromtimestamp(step.at, UTC):%H:%M:%S.%f}"[:-3],
        since_s=step.at - first_at,
        step=step.step,
        reason=step.reason,
        words=IN_WORDS.get(step.reason or ""),
        facts=_known(
            ("message", step.message),
            ("tags", _tags(step)),
            ("bound by", ", ".join(step.profile.bound_by) if step.profile else None),
            ("where", _where(step)),
            ("energy", None if step.energy_wh is None else f"{step.energy_wh:.3g} Wh"),
            ("by the hour", _by_the_hour(step.footprint)),
            ("batch", _batch(step)),
            ("decided", f"with all of the batch; see {leader}" if leader else None),
            ("hold", _hold(step)),
            ("fallback", f"{fallback.pool}: {fallback.reason}" if fallback else None),
            ("tokens", tokens(step.usage) if step.usage else None),
            ("host", _host(step) if step.host else None),
        ),
        envelopes=_envelopes(step.promised, step.got) if step.promised or step.got else None,
        candidates=_candidates(step),
        origin=_known(
            ("refused", _refused(step)),
            ("shadow", _shadow(step.shadow) if step.shadow else None),
            ("by", f"{step.writer}, from {source.topic}/{source.partition}@{source.offset}"),
            ("versions", versions),
        ),
    )


def _by_the_hour(footprint: Footprint | None) -> str | None:
    if footprint is None:
        return None
    told = f"at {footprint.usd_per_hour:.4g} USD a device hour"
    if footprint.gco2 is None:
        return told
    return f"{footprint.gco2:.3g} g CO2, at {footprint.gco2_per_kwh:.4g} g/kWh, {told}"


def _shadow(shadow: Shadow) -> str:
    told = f"policy {shadow.policy_version} would {shadow.action} it ({shadow.reason})"
    if shadow.pool is None:
        return told
    price = f"${shadow.cost_usd or 0.0:.8f}, chance {shadow.chance or 0.0:.3f}"
    return f"{told}: {shadow.pool} {shadow.model_variant}, {price}"


def _where(step: Evidence) -> str | None:
    if step.placement is None:
        return None
    # What is promised there rests on a device of which no servers were measured.
    return where(step.placement) + (" · figures assumed" if step.assumed else "")


def where(placement: Placement) -> str:
    """Return the hardware that served a request, and earlier tries."""
    place = [
        placement.pool,
        placement.device,
        placement.model_variant,
        placement.precision,
        placement.region,
        f"{placement.path} lane",
    ]
    if placement.attempt > 1:
        tried = ", ".join(f"{tried.pool} ({tried.reason})" for tried in placement.fallbacks)
        place.append(f"attempt {placement.attempt}" + (f" after {tried}" if tried else ""))
    return " · ".join(place)


def _host(step: Evidence) -> str:
    host = step.host
    told = [] if host is None else [host.name, host.system, host.cpu, *host.accelerators]
    return " · ".join(each for each in [*told, step.model_digest] if each)


def _batch(step: Evidence) -> str | None:
    batch = step.batch
    return None if batch is None else f"{batch.id}, member {batch.index + 1} of {batch.size}"


def _hold(step: Evidence) -> str | None:
    hold = step.hold
    if hold is None:
        return None
    slack = (
        f"{hold.slack_s:.3f} s before its last start"
        if hold.slack_s >= 0
        else f"{-hold.slack_s:.3f} s after its last start"
    )
    return f"{hold.held_s:.3f} s in {hold.group}; ended by {hold.reason}, {slack}"


def tokens(usage: Usage) -> str:
    """Return the numbers of tokens read and written."""
    return f"{usage.input_tokens} in ({usage.cached_tokens} cached), {usage.output_tokens} out"


def _tags(step: Evidence) -> str | None:
    return "\n".join(
        f"{name} {orjson.dumps(tag.value).decode()} ({tag.source}, {tag.confidence:.2f} sure)"
        for name, tag in (step.tags or {}).items()
    )


def _refused(step: Evidence) -> str:
    return "\n".join(
        f"{c.pool} {c.region}, {c.model_variant} {c.precision}: {c.refused}"
        for c in step.candidates
        if c.refused is not None
    )


def _envelopes(promised: Envelope | None, got: Envelope | None) -> Grid:
    rows = []
    for label, envelope in (("promised", promised), ("got", got)):
        if envelope is not None:
            tpot_ms = None if envelope.tpot_s is None else envelope.tpot_s * 1000
            rows.append((label, *_estimates(envelope), _number(tpot_ms, "{:.1f}")))
    return Grid(("", *FIGURES, "TPOT ms"), 1, tuple(rows))


def _candidates(step: Evidence) -> Grid | None:
    found = zip(step.candidates, reasons(step), strict=True)
    eligible = [(c, reason) for c, reason in found if c.refused is None]
    if not eligible:
        return None
    # Several words in one cell: side by side on a wide screen, one below the other on a narrow one.
    rows = tuple(
        (
            *(c.path, f"{c.pool} {c.region}", f"{c.model_variant} {c.precision}"),
            *(reason.replace("_", " "), *_estimates(c)),
        )
        for c, reason in eligible
    )
    headings = ("path", "pool, region", "variant, precision", "why", *FIGURES)
    return Grid(headings, 4, rows, 0 if has_choice(step) else None)


def _estimates(found: Envelope | Candidate) -> tuple[str, ...]:
    return (
        _number(found.cost_usd, "{:.7f}"),
        _number(found.ttft_s, "{:.3f}"),
        _number(found.finish_s, "{:.3f}"),
        _number(found.chance, "{:.3f}"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
