"""`shunter audit verify`: the whole trail, checked."""

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shunter.audit import Findings
from shunter.audit.files import load_heads, load_keyring, write_heads
from shunter.audit.options import AuditOptions
from shunter.audit.source import Trail, open_trail
from shunter.client.kafka import note
from shunter.console import (
    ArchiveUrl,
    AsJson,
    Bootstrap,
    Prefix,
    check_writable,
    err,
    out,
    settings_from,
)
from shunter.public_log.audit import open_log_check
from topics.terminal_text import visible_line

KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="Believe these keys alone, and what they vouch for (`shunter evidence keys`); with"
        " --trust, know them and their revocations.",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="FINGERPRINT",
        help="Believe the keys alone that this installation key has introduced; or a file of"
        " fingerprints. May be repeated.",
    ),
]
LogUrl = Annotated[
    str | None,
    typer.Option(
        "--log",
        help="The public log of the roots: directory or URL; needs --policy.",
        metavar="URL",
    ),
]
LogPolicy = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="Log and witnesses to believe, as of c2sp.org/tlog-policy.", metavar="FILE"
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Checkpoint of --log from before: held against, and written if all is good.",
    ),
]
LogAge = Annotated[
    float,
    typer.Option(
        "--log-age",
        min=0,
        metavar="HOURS",
        help="How old the witnesses' last cosignature may be: they give one every ten minutes.",
    ),
]
HeadsFile = Annotated[
    Path | None,
    typer.Option(
        "--heads",
        help="File of the last roots: held against if it is there, and written if all is good.",
    ),
]
RetentionDays = Annotated[
    float | None,
    typer.Option(
        "--retention-days",
        min=0,
        help="How long the trail is declared to be kept: 30 days on Kafka;"
        " SHUNTER_ARCHIVE_DAYS, or for ever, in an archive.",
    ),
]
TOLD_MAX = 20


def verify(
    keys: KeysFile = None,
    heads: HeadsFile = None,
    trust: Trust = None,
    public_log: LogUrl = None,
    log_policy: LogPolicy = None,
    checkpoint: Checkpoint = None,
    log_age: LogAge = 1.0,
    retention_days: RetentionDays = None,
    accept_beginnings: Annotated[
        bool,
        typer.Option(
            "--accept-beginnings", help="Take each chain as it begins, whatever came before."
        ),
    ] = False,
    fresh: Annotated[
        int,
        typer.Option(
            "--fresh", min=0, help="Records of an archive in the making that may lack their roots."
        ),
    ] = 0,
    results: Annotated[
        bool, typer.Option(help="Hold results on Kafka against their digests; needs the salts.")
    ] = True,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Check the whole trail: signatures, chains, gaps, ends, constraints, results.

    Asks nothing but the trail, or its archive, and says what it has checked and what it has not.
    Believes the keys that a key of --trust has introduced. Ends with exit code 1 where anything is
    wrong.

    Example: shunter audit verify --trust 0f3c5ad1f2b54dd1b1fc0ab1a2ff3e21 --heads heads.json
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    if retention_days is None and archive is not None:
        retention_days = settings.archive_days
    asked = AuditOptions(
        load_keyring(keys, trust or ()),
        load_heads(heads),
        retention_days,
        accept_beginnings=accept_beginnings,
        with_results=results,
        fresh_max=fresh,
    )
    check_writable(heads, checkpoint)
    trail, logged = (
        open_trail(archive, settings),
        open_log_check(public_log, log_policy, checkpoint),
    )
    findings = _verified(trail, asked, quiet=as_json)
    if logged is not None:
        retention_s = None if retention_days is None else retention_days * 86_400
        logged.finish(trail, findings, retention_s, log_age * 3600)
    if as_json:
        typer.echo(_as_json(findings))
    else:
        _tell(findings)
    if not findings.is_good:
        raise typer.Exit(1)
    if heads is not None:
        write_heads(heads, findings.heads)
    if logged is not None:
        logged.keep()


def _verified(trail: Trail, asked: AuditOptions, *, quiet: bool) -> Findings:
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=trail.count())
        return trail.verify(asked, lambda count: progress.update(task, completed=count))


def _tell(findings: Findings) -> None:
    facts = Table.grid(padding=(0, 2))
    for label, value in (
        ("records", findings.records),
        ("signed roots", findings.roots),
        ("chains", len(findings.heads)),
        ("requests", findings.requests),
        ("not ended yet", findings.open),
        ("newer than the last root", findings.fresh),
    ):
        facts.add_row(label, f"{value:,}")
    out.print(facts)
    for text in findings.notes:
        note(visible_line(f"note: {text}"))
    for problem in findings.problems[:TOLD_MAX]:
        line = visible_line(f"{problem.kind}: {problem.where}: {problem.message}")
        out.print(line, style="red", highlight=False, soft_wrap=True)
    total = sum(findings.counts.values())
    if total > TOLD_MAX:
        kinds = ", ".join(f"{count} {kind}" for kind, count in findings.counts.most_common())
        out.print(f"{total} problems in all: {kinds}", style="red")
    if findings.is_good:
        out.print("verified, so far as it was checked:", style="green")
    checked = "checked" if findings.is_good else "checked, with the problems above"
    for label, lines in ((checked, findings.checked), ("not checked", findings.unchecked)):
        for line in lines:
            out.print(visible_line(f"  {label}: {line}"), highlight=False, soft_wrap=True)


def _as_json(findings: Findings) -> str:
    shown = {
        "good": findings.is_good,
        "records": findings.records,
        "roots": findings.roots,
        "requests": findings.requests,
        "open": findings.open,
        "fresh": findings.fresh,
        "fresh_at": findings.fresh_at,
        "problems": findings.problems,
        "counts": dict(findings.counts),
        "notes": findings.notes,
        "checked": findings.checked,
        "unchecked": findings.unchecked,
        "heads": findings.heads,
    }
    return orjson.dumps(shown).decode()
