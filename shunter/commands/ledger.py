"""`shunter ledger`: what each class of work was and what came of it, in windows of time."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import orjson
import typer

from shunter.audit.source import Trail, open_trail
from shunter.client.kafka import note, run
from shunter.commands.audit_report import time_of
from shunter.console import ArchiveUrl, AsJson, Bootstrap, Prefix, UserError, out, settings_from
from shunter.logs.reading import TrailRow as Record
from shunter.processes.ledger import run_ledger
from streams.usage_report import Endings, Line, UsageRow
from streams.usage_report.projection import as_json as rows_as_json
from streams.usage_report.projection import window_of
from topics import Catalogue
from topics.admin.provisioning import partition_counts
from topics.iso_time import iso_time
from topics.records.evidence import ENDS
from topics.terminal_text import visible_line

# All there ever was is one row of it.
WINDOW_S_MAX = 1e10


def ledger(
    follow: Annotated[
        bool, typer.Option("--follow", help="Serve what comes from now on, instead of reading.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="What is done without --follow.", hidden=True)
    ] = False,
    start: Annotated[
        str | None, typer.Option("--from", help="First day or time, ISO 8601, UTC if it says none.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="The first not counted.")] = None,
    window_s: Annotated[
        float, typer.Option("--window", min=1.0, max=WINDOW_S_MAX, help="Of a row, in s.")
    ] = 60.0,
    by_tenant: Annotated[
        bool, typer.Option("--by-tenant", help="Tell the tenants of a class apart.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where the live ledger is served.")
    ] = 6067,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Tell per class, interactive apart from background, what was asked, served, paid and missed.

    The evidence is read once, from Kafka or an archive. With --follow the command reads on from
    now, and serves the newest 60 windows as JSON at http://127.0.0.1:6067/ledger until it is
    stopped; it counts nothing that ended before it began.

    Example: shunter ledger --from 2026-11-24 --window 3600
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    if exact and follow:
        raise UserError("--exact reads what is there, --follow what comes: give one of them")
    if not follow:
        found = exact_rows(open_trail(archive, settings), start, end, window_s, by_tenant=by_tenant)
        _show(found, as_json=as_json, window_s=window_s)
        return
    if start or end or archive or as_json:
        raise UserError("--from, --to, --archive and --json don't go with --follow")
    evidence = Catalogue(settings).evidence
    # A follower would wait for ever for a missing broker or topic.
    run(partition_counts(settings, [evidence]))
    live = settings.model_copy(update={"web_port": port})
    run_ledger(live, window_s, by_tenant=by_tenant)


def exact_rows(
    trail: Trail, start: str | None, end: str | None, window_s: float, *, by_tenant: bool = False
) -> dict[tuple[float, Line], UsageRow]:
    """Return the rows of what ended from ``start`` to ``end``, by start of window and line.

    All of the evidence is read: how urgent a request is stands where it was decided on.
    """
    first, last = time_of(start, 0.0), time_of(end, math.inf)
    endings: dict[int, Endings] = {}
    rows: dict[tuple[float, Line], UsageRow] = {}

    def take(record: Record) -> None:
        if record.partition not in endings:
            endings[record.partition] = Endings(by_tenant=by_tenant)
        found = endings[record.partition].take(record.value)
        if found is not None and first <= found.at < last:
            rows.setdefault((window_of(found.at, window_s), found.line), UsageRow()).add(found)

    trail.each("evidence", take)
    unreadable = sum(each.unreadable for each in endings.values())
    if unreadable:
        note(f"{unreadable} records are no evidence and were left out")
    return rows


def _show(rows: dict[tuple[float, Line], UsageRow], window_s: float, *, as_json: bool) -> None:
    figures = rows_as_json(rows)
    if as_json:
        typer.echo(orjson.dumps({"window_s": window_s, "rows": figures}).decode())
        return
    for row in figures:
        heading = f"{iso_time(row['from'])}  {row['lane']} {row['task']}"
        if row["tenant"] is not None:
            heading += f" of {row['tenant']}"
        for line in (heading, *(f"    {told}" for told in _told(row))):
            out.print(visible_line(line), highlight=False)


def _told(row: dict[str, Any]) -> Iterator[str]:
    """Yield what a row says, line by line; a line of what never happened is left out."""
    ends: dict[str, int] = {status: row[status] for status in ENDS.values() if row[status]}
    yield f"{row['requests']} ended: {_counts(ends)}; {row['retry_rate']:.1%} retried"
    if row["finish_s"]["p50"] is not None:
        first, each, end = (_spread(row[name]) for name in ("ttft_s", "tpot_s", "finish_s"))
        yield f"p50/p99: first token {first} s; token {each} s; end {end} s"
        context, output = (_spread(row[name]) for name in ("context_tokens", "output_tokens"))
        cached, tools = row["cache_hit_rate"] or 0.0, row["tool_calls_mean"] or 0.0
        yield f"tokens: context {context}; output {output}; {cached:.1%} cached"
        spent = f"{row['cost_usd']:.6f} USD; {row['energy_wh']:.3g} Wh"
        emitted = f"; {row['gco2']:.3g} g CO2" if row["gco2"] else ""
        yield f"{tools:g} tool calls an answer; {spent}{emitted}"
    elif row["cost_usd"]:
        yield f"{row['cost_usd']:.6f} USD"
    if row["spent_usd"]:
        yield f"{row['spent_usd']:.6f} USD of that for tries without an answer"
    if held := row["held_promises"]:
        dear, late = row["dearer_than_held"], row["later_than_held"]
        yield f"{held} had a promise when held: {dear} cost more, {late} came later"
    if row["pools"]:
        yield f"at {_counts(row['pools'])}; {_counts(row['model_variants'])}"
    if row["failures"]:
        yield f"without an answer: {_counts(row['failures'])}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _spread(values: dict[str, float | None]) -> str:
    middle, top = values["p50"], values["p99"]
    return "-" if middle is None or top is None else f"{middle:.3g}/{top:.3g}"
