"""`shunter audit`: the audit trail."""

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from shunter.audit.disclosures import disclose as disclosed
from shunter.audit.files import load_keyring
from shunter.audit.forgetting import forget_tenant
from shunter.audit.proofs import ProofError, check_proof, make_proof
from shunter.audit.source import Trail, open_trail, read_keyring
from shunter.audit.texts import match_text, read_text
from shunter.client.kafka import note, run
from shunter.command_tree import CommandTree
from shunter.commands.audit_report import export, replay, report
from shunter.commands.audit_verify import KeysFile, LogPolicy, LogUrl, Trust, verify
from shunter.console import (
    ArchiveUrl,
    AsJson,
    Bootstrap,
    Prefix,
    UserError,
    check_writable,
    named,
    out,
    read_input,
    settings_from,
    write_output,
)
from shunter.logs.reading import TrailRow
from shunter.public_log.audit import check_logged, prove_logged
from shunter.render.story import story
from topics import BadRecordError, Catalogue, Evidence, decode, encode
from topics.signing.key_files import KeyFileError
from topics.signing.keys import load_signing_key

audit = CommandTree(
    add_completion=False, name="audit", help="Look into the audit trail, and check it."
)
audit.command()(verify)
audit.command()(report)
audit.command()(export)
audit.command()(replay)

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The id of a request.")]


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
def proof(
    request_id: RequestId,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write it; standard output if unset.")
    ] = None,
    public_log: LogUrl = None,
    log_policy: LogPolicy = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Write a proof that the evidence of a request was signed: one JSON file, complete in itself.

    Example: shunter audit proof request-1 --output proof.json
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    if log_policy is not None and public_log is None:
        raise UserError("--policy is of a public log; name it by --log")
    check_writable(output)
    document = _proof_of(request_id, open_trail(archive, settings))
    if public_log is not None:
        document["log_proofs"] = prove_logged(document, public_log, log_policy)
    written = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    if output is None:
        typer.echo(written.decode())
    else:
        write_output(output, written)
        note(f"{len(document['proofs'])} records of {request_id} are proven in {output}")


def _proof_of(request_id: str, trail: Trail) -> dict[str, Any]:
    rows = trail.of_request(request_id)
    if not rows:
        raise UserError(f"nothing is known of request {request_id!r}")
    roots: list[TrailRow] = []
    trail.each("roots", roots.append)
    try:
        return make_proof(request_id, rows, roots, read_keyring(trail))
    except ProofError as error:
        raise UserError(str(error)) from error


@audit.command()
def attest(
    request_id: RequestId,
    key: Annotated[
        Path, typer.Option("--key", help="Key of whoever attests (`shunter evidence keygen`).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write it; standard output if unset.")
    ] = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Write the proof of a request as an in-toto statement, signed in a DSSE envelope.

    Tools for attestations verify it; its predicate is what `shunter audit verify-proof` takes.

    Example: shunter audit attest request-1 --key auditor.pem --output request-1.intoto.json
    """
    try:
        from shunter.audit.attestation import attest as attested  # noqa: PLC0415  optional
    except ImportError as error:
        told = f"an attestation needs more: pip install 'shunter[attestation]' ({error})"
        raise UserError(told) from error
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    try:
        signing_key = load_signing_key(key)
    except OSError as error:
        raise UserError(f"{key}: {error.strerror}") from error
    except KeyFileError as error:
        raise UserError(str(error)) from error
    check_writable(output)
    envelope = attested(_proof_of(request_id, open_trail(archive, settings)), signing_key)
    written = orjson.dumps(envelope, option=orjson.OPT_INDENT_2)
    if output is None:
        typer.echo(written.decode())
    else:
        write_output(output, written)


@audit.command("verify-proof")
def verify_proof(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="As `shunter audit proof` writes; - is standard input."
        ),
    ],
    keys: KeysFile = None,
    trust: Trust = None,
    log_policy: LogPolicy = None,
) -> None:
    """Check a proof; no broker and no archive is asked.

    Without ``--trust`` or ``--keys`` the keys in the file are believed: compare their ids with
    those you know.

    Example: shunter audit verify-proof proof.json --keys keys.json
    """
    try:
        document = orjson.loads(read_input(file))
        keyring = load_keyring(keys, trust or ()) if keys or trust else None
        lines = check_proof(document, keyring)
        if log_policy is not None:
            lines += check_logged(document, log_policy)
    except OSError as error:
        raise UserError(f"{named(file)}: {error.strerror}") from error
    except (ProofError, orjson.JSONDecodeError) as error:
        raise UserError(f"{named(file)} proves nothing: {error}") from error
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    if not keys and not trust:
        note("the keys were taken from the file itself; --trust names whose word you believe")


@audit.command()
def match(
    request_id: RequestId,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON: a request, a body, or parts of a request; - is standard input.",
        ),
    ],
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Tell whether a text is the request as it was sent, its body, that of its answer, or a part.

    Parts are what `shunter audit disclose` writes. Needs the salts of the tenant, and
    SHUNTER_EVIDENCE_SECRET where the installation has one. Ends with exit code 1 where it is none,
    or where only the body is what was sent.

    Example: shunter audit match request-1 body.json
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    rows = open_trail(archive, settings).of_request(request_id)
    found = run(match_text(settings, rows, read_text(file)))
    for each in found:
        out.print(each.told, highlight=False)
    if not found:
        note(f"{named(file)} is nothing that {request_id} was, or had")
    if not found or any(each.is_altered for each in found):
        raise typer.Exit(1)


@audit.command()
def disclose(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON: the request as it was sent; - is standard input."
        ),
    ],
    pointers: Annotated[
        list[str],
        typer.Argument(metavar="POINTER...", help="Parts to show: /tenant, /constraints/regions."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Where to write it; standard output if unset.")
    ] = None,
) -> None:
    """Write parts of a request so that `shunter audit match` can prove them without the others.

    Asks no broker: a client makes it from its own copy, and whoever gets it learns nothing of the
    parts that it doesn't show.

    Example: shunter audit disclose request.json /constraints/regions --output regions.json
    """
    written = orjson.dumps(disclosed(read_text(file), pointers), option=orjson.OPT_INDENT_2)
    if output is None:
        typer.echo(written.decode())
    else:
        write_output(output, written)


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
    out.print(
        f"{count} salts of {tenant} destroyed; they leave the brokers' disks within 15 minutes"
    )
