"""The story of a request: its evidence as a person reads it."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import orjson
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from topics import Candidate, Envelope, Evidence, Placement

INDENT = 4
STYLES = {
    "placed": "cyan",
    "held": "yellow",
    "released": "cyan",
    "executed": "green",
    "fell_back": "magenta",
}
BAD_STYLE = "red"
# What a reason code says, where its name alone doesn't.
IN_WORDS = {
    "only_candidate": "nothing else could serve it",
    "cheapest_in_time": "the cheapest likely enough to be in time",
    "waiting_is_cheapest": "waiting for a batch is the cheapest likely enough to be in time",
    "best_chance": "none is likely enough to be in time; this one has the best chance",
    "full": "the batch is full",
    "slack": "the earliest deadline leaves no time to wait on",
    "window": "the batch window closed",
    "pool_available": "a pool became available",
    "pool_unavailable": "no pool that may serve it has a live worker",
    "deadline_passed": "its deadline passed",
    "no_pool": "no pool may serve it",
    "unknown_model": "the fleet does not declare the model",
}


def story(evidence: Sequence[Evidence]) -> RenderableType:
    """Return the steps of one request, earliest first, as a renderable for 80 columns or more."""
    steps = sorted(evidence, key=lambda step: step.at)
    if not steps:
        return Text("no evidence")
    parts: list[RenderableType] = [_title(steps)]
    for step in steps:
        parts += ["", _heading(step, steps[0].at)]
        parts += [Padding(detail, (0, 0, 0, INDENT)) for detail in _details(step)]
    return Group(*parts)


def _title(steps: Sequence[Evidence]) -> RenderableType:
    first = steps[0]
    began = datetime.fromtimestamp(first.at, UTC)
    known = [
        ("tenant", _any(step.tenant for step in steps)),
        ("task", _any(step.task for step in steps)),
        ("model", _any(step.model for step in steps)),
        ("trace", _any(step.trace_id for step in steps)),
        ("first step", f"{began:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    return Group(
        Text(f"request {first.request_id}", style="bold"),
        _facts((label, value) for label, value in known if value),
    )


def _any(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _heading(step: Evidence, first_at: float) -> Text:
    clock = f"{datetime.fromtimestamp(step.at, UTC):%H:%M:%S.%f}"[:-3]
    line = Text(f"{clock}  +{step.at - first_at:.3f} s  ", style="dim")
    line.append(step.step, style=f"not dim bold {STYLES.get(step.step, BAD_STYLE)}")
    if step.reason:
        words = IN_WORDS.get(step.reason)
        line.append(f": {step.reason}" + (f" ({words})" if words else ""), style="not dim")
    return line


def _details(step: Evidence) -> list[RenderableType]:
    facts = [
        (label, value)
        for label, value in (
            ("message", step.message),
            ("tags", _tags(step)),
            ("where", step.placement and _where(step.placement)),
            ("batch", _batch(step)),
            ("hold", _hold(step)),
            ("fallback", step.fallback and f"{step.fallback.pool}: {step.fallback.reason}"),
            ("tokens", _tokens(step)),
        )
        if value
    ]
    details: list[RenderableType] = [_facts(facts)] if facts else []
    if step.promised or step.got:
        details.append(_envelopes(step.promised, step.got))
    if step.candidates:
        details.append(_candidates(step))
    source = step.source
    versions = [
        f"{name} {version}"
        for name, version in (("policy", step.policy_version), ("fleet", step.fleet_version))
        if version
    ]
    origin = f"{step.writer}, from {source.topic}/{source.partition}@{source.offset}"
    details.append(_facts([("by", " · ".join([origin, *versions]))], style="dim"))
    return details


def _facts(facts: Iterable[tuple[str, str]], *, style: str = "") -> Table:
    grid = Table.grid(padding=(0, 2))
    # One width for all, so that the values of one block stand below those of another.
    grid.add_column(min_width=10, style="dim", no_wrap=True)
    grid.add_column(overflow="fold", style=style)
    for label, value in facts:
        grid.add_row(label, Text(value))
    return grid


def _where(placement: Placement) -> str:
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


def _tokens(step: Evidence) -> str | None:
    usage = step.usage
    if usage is None:
        return None
    return f"{usage.input_tokens} in ({usage.cached_tokens} cached), {usage.output_tokens} out"


def _tags(step: Evidence) -> str | None:
    return ", ".join(
        f"{name} {orjson.dumps(tag.value).decode()} ({tag.source} {tag.confidence:.2g})"
        for name, tag in (step.tags or {}).items()
    )


def _envelopes(promised: Envelope | None, got: Envelope | None) -> Table:
    table = _figures("")
    table.columns[0].min_width = 10
    for label, envelope in (("promised", promised), ("got", got)):
        if envelope is not None:
            table.add_row(label, *_estimates(envelope))
    return table


def _candidates(step: Evidence) -> Table:
    # Two facts in one cell: side by side on a wide terminal, one below the other on a narrow one.
    table = _figures("", "path", "pool, region", "variant, precision")
    table.add_column("refused", overflow="fold")
    for index, candidate in enumerate(step.candidates):
        chosen = _is_chosen(step, index)
        table.add_row(
            "→" if chosen else "",
            candidate.path,
            f"{candidate.pool} {candidate.region}",
            f"{candidate.model_variant} {candidate.precision}",
            *_estimates(candidate),
            candidate.refused or "",
            style="bold" if chosen else "dim" if candidate.refused else "",
        )
    return table


def _is_chosen(step: Evidence, index: int) -> bool:
    """Tell whether the decision was for this candidate; the best stands first."""
    if step.placement is None:
        return index == 0 and step.promised is not None
    candidate, placement = step.candidates[index], step.placement
    return candidate.refused is None and (
        candidate.pool,
        candidate.model_variant,
        candidate.precision,
    ) == (placement.pool, placement.model_variant, placement.precision)


def _figures(*labels: str) -> Table:
    table = Table(*labels, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("cost $", "TTFT s", "finish s", "TPOT ms", "chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _estimates(found: Envelope | Candidate) -> tuple[str, ...]:
    tpot_ms = None if found.tpot_s is None else found.tpot_s * 1000
    return (
        _number(found.cost_usd, "{:.7f}"),
        _number(found.ttft_s, "{:.3f}"),
        _number(found.finish_s, "{:.3f}"),
        _number(tpot_ms, "{:.1f}"),
        _number(found.chance, "{:.3f}"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
