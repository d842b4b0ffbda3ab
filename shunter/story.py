"""The story of a request: its evidence as a person reads it."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import orjson
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from topics import Candidate, Envelope, Evidence, Placement, Shadow, Usage

INDENT = 2
LABEL_WIDTH = 10
FIGURES = ("cost $", "TTFT s", "finish s", "chance")
STYLES = {
    "placed": "cyan",
    "held": "yellow",
    "released": "cyan",
    "executed": "green",
    "fell_back": "magenta",
    "duplicate": "yellow",
    "cancel_requested": "yellow",
    "cancelled": "yellow",
}
BAD_STYLE = "red"
# What a reason code says, where its name alone doesn't.
IN_WORDS = {
    "only_candidate": "nothing else could serve it",
    "cheapest_in_time": "the cheapest likely enough to be in time",
    "waiting_is_cheapest": "waiting for a batch is the cheapest likely enough to be in time",
    "best_chance": "none is likely enough to be in time; this one has the best chance",
    "preferred_by_extension": "the policy's extensions prefer it to cheaper ones",
    "full": "the batch is full",
    "slack": "the earliest deadline leaves no time to wait on",
    "window": "the batch window closed",
    "pool_available": "a pool became available",
    "pool_unavailable": "no pool that may serve it has a live worker",
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


def story(evidence: Sequence[Evidence]) -> RenderableType:
    """Return the steps of one request, earliest first, as a renderable for 80 columns or more."""
    steps = sorted(evidence, key=lambda step: step.at)
    if not steps:
        return Text("no evidence")
    policies = {step.policy_version for step in steps if step.policy_version}
    fleets = {step.fleet_version for step in steps if step.fleet_version}
    # Versions that changed on the way are told at each step.
    is_steady = len(policies) <= 1 and len(fleets) <= 1
    parts: list[RenderableType] = [_title(steps)]
    for step in steps:
        parts += ["", _heading(step, steps[0].at)]
        details = _details(step, show_versions=not is_steady)
        parts += [Padding(detail, (0, 0, 0, INDENT)) for detail in details]
    if is_steady and policies | fleets:
        parts += ["", _facts([("versions", _versions(_any(policies), _any(fleets)))])]
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


def _versions(policy: str | None, fleet: str | None) -> str:
    known = [f"policy {policy}"] if policy else []
    return " · ".join([*known, f"fleet {fleet}"] if fleet else known)


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


def _details(step: Evidence, *, show_versions: bool) -> Iterator[RenderableType]:
    before = (
        ("message", step.message),
        ("tags", _tags(step)),
        ("where", step.placement and where(step.placement)),
        ("batch", _batch(step)),
        ("decided", step.decided_with and f"with all of the batch; see {step.decided_with}"),
        ("hold", _hold(step)),
        ("fallback", step.fallback and f"{step.fallback.pool}: {step.fallback.reason}"),
        ("tokens", step.usage and tokens(step.usage)),
        ("host", step.host and _host(step)),
    )
    yield _facts((label, value) for label, value in before if value)
    if step.promised or step.got:
        yield _envelopes(step.promised, step.got)
    if any(candidate.refused is None for candidate in step.candidates):
        yield _candidates(step)
    source = step.source
    after = (
        ("refused", _refused(step)),
        ("shadow", step.shadow and _shadow(step.shadow)),
        ("by", f"{step.writer}, from {source.topic}/{source.partition}@{source.offset}"),
        ("versions", show_versions and _versions(step.policy_version, step.fleet_version)),
    )
    yield _facts((label, value) for label, value in after if value)


def _shadow(shadow: Shadow) -> str:
    told = f"policy {shadow.policy_version} would {shadow.action} it ({shadow.reason})"
    if shadow.pool is None:
        return told
    price = f"${shadow.cost_usd or 0.0:.8f}, chance {shadow.chance or 0.0:.3f}"
    return f"{told}: {shadow.pool} {shadow.model_variant}, {price}"


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 1))
    # One width for all, so that the values of one block stand below those of another.
    grid.add_column(min_width=LABEL_WIDTH, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(label, Text(value))
    return grid


def where(placement: Placement) -> str:
    """Return the hardware that served a request, and what was tried before."""
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
    """Return what was read and written."""
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


def _envelopes(promised: Envelope | None, got: Envelope | None) -> Table:
    table = _figures("", figures=(*FIGURES, "TPOT ms"))
    table.columns[0].min_width = LABEL_WIDTH + 1
    for label, envelope in (("promised", promised), ("got", got)):
        if envelope is not None:
            tpot_ms = None if envelope.tpot_s is None else envelope.tpot_s * 1000
            table.add_row(label, *_estimates(envelope), _number(tpot_ms, "{:.1f}"))
    return table


def _candidates(step: Evidence) -> Table:
    # Two facts in one cell: side by side on a wide terminal, one below the other on a narrow one.
    table = _figures("", "path", "pool, region", "variant, precision", figures=FIGURES)
    for index, candidate in enumerate(step.candidates):
        if candidate.refused is None:
            chosen = _is_chosen(step, index)
            table.add_row(
                "→" if chosen else "",
                candidate.path,
                f"{candidate.pool} {candidate.region}",
                f"{candidate.model_variant} {candidate.precision}",
                *_estimates(candidate),
                style="bold" if chosen else "",
            )
    return table


def _is_chosen(step: Evidence, index: int) -> bool:
    """Tell whether the decision was for this candidate; the best stands first."""
    if step.placement is None:
        return index == 0 and step.promised is not None
    candidate, placement = step.candidates[index], step.placement
    return (candidate.pool, candidate.model_variant, candidate.precision) == (
        placement.pool,
        placement.model_variant,
        placement.precision,
    )


def _figures(*labels: str, figures: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for label in labels:
        table.add_column(label, overflow="fold")
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _estimates(found: Envelope | Candidate) -> tuple[str, ...]:
    return (
        _number(found.cost_usd, "{:.7f}"),
        _number(found.ttft_s, "{:.3f}"),
        _number(found.finish_s, "{:.3f}"),
        _number(found.chance, "{:.3f}"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
