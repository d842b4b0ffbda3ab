"""`shunter audit`: the audit trail."""

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shunter.audit import Findings, Keyring
from shunter.audit.chains import Witnessed
from shunter.audit.files import load_heads, load_keyring, write_heads
from shunter.audit.proofs import ProofError, check_proof, make_proof
from shunter.audit.source import Trail, open_trail, read_keyring
from shunter.audit.texts import forget_tenant, match_text, read_text
from shunter.client.kafka import note, run
from shunter.commands.audit_report import export, replay, report
from shunter.console import (
    ArchiveUrl,
    AsJson,
    Bootstrap,
    Prefix,
    UserError,
    err,
    named,
    out,
    read_input,
    settings_from,
)
from shunter.logs.reading import TrailRow
from shunter.render.story import story
from topics import BadRecordError, Catalogue, Evidence, decode, encode
from topics.terminal_text import visible_line

audit = typer.Typer(name="audit", help="Look into the audit trail, and check it.")
audit.command()(report)
audit.command()(export)
audit.command()(replay)

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The id of a request.")]
KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="Believe these keys alone, and what they vouch for (`shunter evidence keys`).",
    ),
]
TOLD_MAX = 20


@audit.command()
def show(
    request_id: RequestId,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Tell the story of a request: each decision with its candidates, each step with its reason.

    Ends with exit code 1 when nothing is known of the id.

    Example: shunter audit show request-1
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    steps = []
    for row in open_trail(archive, settings).of_request(request_id):
        try:
            steps.append(decode(Evidence, row.value or b""))
        except BadRecordError as error:
            note(f"{row.where} is left out: {error.message}")
    if not steps:
        place = archive or f"{Catalogue(settings).evidence} at {settings.bootstrap_servers}"
        raise UserError(
            f"nothing is known of request {request_id!r} on {place}: it has not been routed yet,"
            " its evidence is older than what is kept, or the id is another one"
        )
    steps.sort(key=lambda step: step.at)
    if as_json:
        typer.echo(encode(steps).decode())
    else:
        out.print(story(steps))


@audit.command()
def verify(
    keys: KeysFile = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            "--heads",
            help="File of the last roots: held against if it is there, and written if all is good.",
        ),
    ] = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Check the whole trail: signatures, chains, gaps, ends, constraints.

    Asks nothing but the trail, or its archive, and believes nothing but public keys. Ends with exit
    code 1 where anything is wrong.

    Example: shunter audit verify --archive /srv/evidence --keys keys.json --heads heads.json
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    keyring, witnessed = load_keyring(keys), load_heads(heads)
    trail = open_trail(archive, settings)
    findings = _verified(trail, keyring, witnessed, quiet=as_json)
    if as_json:
        typer.echo(_as_json(findings))
    else:
        _tell(findings)
    if not findings.is_good:
        raise typer.Exit(1)
    if heads is not None:
        write_heads(heads, findings.heads)


@audit.command()
def proof(
    request_id: RequestId,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write it; standard output if unset.")
    ] = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Write a proof that the evidence of a request was signed: one JSON file, complete in itself.

    Example: shunter audit proof request-1 --output proof.json
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    trail = open_trail(archive, settings)
    rows = trail.of_request(request_id)
    if not rows:
        raise UserError(f"nothing is known of request {request_id!r}")
    roots: list[TrailRow] = []
    trail.each("roots", roots.append)
    try:
        document = make_proof(request_id, rows, roots, read_keyring(trail))
    except ProofError as error:
        raise UserError(str(error)) from error
    written = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    if output is None:
        typer.echo(written.decode())
    else:
        output.write_bytes(written)
        note(f"{len(rows)} records of {request_id} are proven in {output}")


@audit.command("verify-proof")
def verify_proof(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="As `shunter audit proof` writes; - is standard input."
        ),
    ],
    keys: KeysFile = None,
) -> None:
    """Check a proof; no broker and no archive is asked.

    Without ``--keys`` the keys in the file are believed: compare their ids with those you know.

    Example: shunter audit verify-proof proof.json --keys keys.json
    """
    try:
        document = orjson.loads(read_input(file))
        lines = check_proof(document, None if keys is None else load_keyring(keys))
    except OSError as error:
        raise UserError(f"{named(file)}: {error.strerror}") from error
    except (ProofError, orjson.JSONDecodeError) as error:
        raise UserError(f"{named(file)} proves nothing: {error}") from error
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    if keys is None:
        note("the keys were taken from the file itself; --keys names those that you believe")


@audit.command()
def match(
    request_id: RequestId,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON: a body, or a request line; - is standard input."
        ),
    ],
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Tell whether a text is the body that a request, or its answer, had.

    Needs the salts of the tenant, and SHUNTER_EVIDENCE_SECRET where the installation has one. Ends
    with exit code 1 where it is neither.

    Example: shunter audit match request-1 body.json
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    rows = open_trail(archive, settings).of_request(request_id)
    found = run(match_text(settings, rows, read_text(file)))
    for line in found:
        out.print(line, highlight=False)
    if not found:
        note(f"{named(file)} is neither the body of {request_id} nor that of its answer")
        raise typer.Exit(1)


@audit.command()
def forget(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")],
    is_sure: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Destroy a tenant's salts: its digests can't be compared with any text any more.

    Nothing signed changes, so that the trail verifies as before. There is no way back.

    Example: shunter audit forget acme --yes
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    if not is_sure:
        typer.confirm(f"Destroy the salts of tenant {tenant!r} for ever?", abort=True)
    count = run(forget_tenant(settings, tenant))
    if not count:
        raise UserError(f"there are no salts of tenant {tenant!r}: forgotten before, or never seen")
    out.print(f"{count} salts of {tenant} destroyed; Kafka deletes them within a day")


def _verified(trail: Trail, keyring: Keyring, witnessed: Witnessed, *, quiet: bool) -> Findings:
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=trail.count())
        return trail.verify(
            keyring,
            witnessed,
            lambda count: progress.update(task, completed=count),
        )


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
        out.print("verified: nothing was altered, and nothing is missing", style="green")


def _as_json(findings: Findings) -> str:
    shown = {
        "good": findings.is_good,
        "records": findings.records,
        "roots": findings.roots,
        "requests": findings.requests,
        "open": findings.open,
        "fresh": findings.fresh,
        "problems": findings.problems,
        "counts": dict(findings.counts),
        "notes": findings.notes,
        "heads": findings.heads,
    }
    return orjson.dumps(shown).decode()
