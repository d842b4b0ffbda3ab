"""`shunter audit report`, `export` and `replay`: what can be made of the evidence."""

import base64
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import orjson
import typer

from shunter.audit.files import load_keyring
from shunter.audit.options import AuditOptions
from shunter.audit.regulator import RegulatorReport, as_page
from shunter.audit.replay import decisions_on, replay_steps
from shunter.audit.report import AuditReport, as_csv, as_html
from shunter.audit.source import Trail, open_trail
from shunter.audit.topic_export import Take, TextKind
from shunter.audit.versions import Versions
from shunter.client.kafka import note
from shunter.commands.audit_verify import KeysFile, Trust
from shunter.console import (
    ArchiveUrl,
    AsJson,
    Bootstrap,
    FleetFile,
    PolicyFile,
    Prefix,
    UserError,
    check_writable,
    out,
    settings_from,
    write_output,
)
from shunter.logs.reading import Kind, TrailRow
from topics import BadRecordError, Catalogue, Evidence, decode
from topics.iso_time import epoch_of

KINDS: tuple[Kind, ...] = ("evidence", "roots", "keys")
TEXT_KINDS: tuple[TextKind, ...] = ("results", "salts")


class Format(StrEnum):
    """The format that a report is written in."""

    CSV = "csv"
    JSON = "json"
    HTML = "html"
    REGULATOR = "regulator"


def report(
    start: Annotated[
        str | None, typer.Option("--from", help="First day or time, ISO 8601, UTC if it says none.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="The first not counted.")] = None,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.CSV,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write it; standard output if unset.")
    ] = None,
    keys: KeysFile = None,
    trust: Trust = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Count what was served per tenant, class, pool, region and precision, and what it cost.

    ``--format regulator`` is a page with regions, hardware, precision and exceptions of each
    tenant, the roots that cover it, and what was checked: the whole trail is verified for it.

    Example: shunter audit report --from 2026-11-01 --to 2026-12-01 --format html --output nov.html
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    span = time_of(start, 0.0), time_of(end, math.inf)
    if (keys or trust) and form is not Format.REGULATOR:
        raise UserError(
            f"--format {form} verifies nothing: --keys and --trust go with --format regulator"
        )
    check_writable(output)
    trail = open_trail(archive, settings)
    if form is Format.REGULATOR:
        place = archive or f"{Catalogue(settings).evidence} at {settings.bootstrap_servers}"
        asked = AuditOptions(
            load_keyring(keys, trust or ()), {}, settings.archive_days if archive else None
        )
        believed = trust[0] if trust else None if keys is None else keys.name
        _written(_regulator_page(trail, span, asked, place, believed), output)
        return
    found = AuditReport(*span)
    trail.each("evidence", lambda row: found.add(row.value or b""))
    if found.unreadable:
        note(f"{found.unreadable} records are no evidence and were left out")
    text = {Format.CSV: as_csv, Format.HTML: as_html, Format.JSON: _as_json}[form](found)
    _written(text, output)


def _regulator_page(
    trail: Trail, span: tuple[float, float], asked: AuditOptions, place: str, believed: str | None
) -> str:
    accounts = RegulatorReport(*span)
    findings = trail.verify(asked, lambda _count: None)
    trail.each("evidence", lambda row: accounts.add(row.value or b""))
    if not findings.is_good:
        note("problems were found; `shunter audit verify` lists them")
    return as_page(accounts, findings, place, believed)


def _written(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_output(output, text.encode())


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is not there.")],
    results: Annotated[
        bool,
        typer.Option(
            "--results",
            help="Results and salts of tenants besides, for a second verifier: texts and secrets,"
            " in files that `shunter audit forget` doesn't reach.",
        ),
    ] = False,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Write the whole trail as JSONL: evidence, roots and keys, for programs of any kind.

    Example: shunter audit export /tmp/trail
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    trail = open_trail(archive, settings)
    if results and archive is not None:
        raise UserError("results and salts are on Kafka alone: leave --archive out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            take: dict[Kind | TextKind, Take] = {}
            for kind in (*KINDS, *(TEXT_KINDS if results else ())):
                path = directory / f"{kind}.jsonl"
                if kind in TEXT_KINDS:
                    path.touch(mode=0o600)
                take[kind] = write_lines(files.enter_context(path.open("wb")))
            trail.export(take)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from error


def _steps(trail: Trail, request_id: str) -> list[Evidence]:
    steps = []
    for row in trail.of_request(request_id):
        try:
            steps.append(decode(Evidence, row.value or b""))
        except BadRecordError as error:
            note(f"{row.where} is left out: {error.message}")
    return steps


def replay(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a request.")],
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Make the decisions on a request again, from what they were made on, and compare.

    Fleet and policy are those of the versions that the evidence names: the files given, if they are
    of these, else what was applied under them (`shunter policy history`). Ends with exit code 1
    where a decision comes out otherwise.

    Example: shunter audit replay request-1
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, fleet=fleet, policy=policy
    )
    trail = open_trail(archive, settings)
    steps = decisions_on(request_id, lambda name: _steps(trail, name))
    if not steps:
        raise UserError(f"nothing is known of request {request_id!r}")
    replayed = replay_steps(steps, Versions(settings).find)
    if as_json:
        typer.echo(orjson.dumps(replayed).decode())
    for each in () if as_json else replayed:
        verdict = "differs" if each.differences else "the same again"
        with_ = "" if each.request_id == request_id else f", decided on with {each.request_id}"
        line = f"{each.step}, attempt {each.attempt}{with_}: {verdict}, {each.chosen} first"
        out.print(line, highlight=False, soft_wrap=True)
        for difference in each.differences:
            out.print(f"  {difference}", highlight=False, soft_wrap=True)
    if any(each.differences for each in replayed):
        raise typer.Exit(1)


def time_of(text: str | None, default: float) -> float:
    """Return a time that a user gave, epoch seconds.

    Raises:
        UserError: it is none.
    """
    if text is None:
        return default
    try:
        return epoch_of(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no date or time of ISO 8601, such as 2026-11-24") from error


def _as_json(found: AuditReport) -> str:
    return orjson.dumps({"groups": found.rows(), "total": found.total()}).decode() + "\n"


def write_lines(file: BinaryIO) -> Callable[[TrailRow], object]:
    """Return what writes each record to the file as a line of JSON (docs/evidence.md)."""

    def write(row: TrailRow) -> None:
        line: dict[str, Any] = {
            "partition": row.partition,
            "offset": row.offset,
            "at": row.at,
            "key": None if row.key is None else row.key.decode("utf-8", "backslashreplace"),
        }
        try:
            told = json.dumps(line | {"value": json.loads(row.value or b"null")})
        except (ValueError, RecursionError):
            told = json.dumps(line | {"raw": base64.b64encode(row.value or b"").decode()})
        file.write(told.encode() + b"\n")

    return write
