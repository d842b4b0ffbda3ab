"""`shunter evidence`: the keys that are known, and the archive that keeps the trail."""

import asyncio
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Column, Table

from shunter.audit.files import write_keys
from shunter.audit.keyring import Keyring
from shunter.client.kafka import note, run
from shunter.command_tree import CommandTree
from shunter.commands.evidence_keys import introduce, keygen, publish, published_keys, revoke
from shunter.commands.public_log import log, log_keygen
from shunter.console import AsJson, Bootstrap, Prefix, UserError, check_writable, out, settings_from
from streams.engine.clock import SystemClock
from streams.kafka.log import KafkaLog
from streams.logs import set_up_logging
from topics import Catalogue, Settings
from topics.admin.provisioning import partition_counts
from topics.iso_time import iso_time
from topics.signing.signed_root import PublishedKey

evidence = CommandTree(
    add_completion=False,
    name="evidence",
    help="Keys that sign evidence, its archive and its public log.",
)
for command in (keygen, introduce, revoke, publish, log):
    evidence.command()(command)
evidence.command("log-keygen")(log_keygen)


@evidence.command()
def keys(
    output: Annotated[
        Path | None, typer.Option("--output", help="Write them for `shunter audit verify --keys`.")
    ] = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """List the public keys that processes have published.

    Example: shunter evidence keys --output keys.json
    """
    if output is not None and as_json:
        raise UserError("--json prints the keys, --output writes them: give one of the two")
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    check_writable(output)
    keyring = run(published_keys(settings))
    if output is not None:
        try:
            count = write_keys(output, keyring)
        except OSError as error:
            raise UserError(f"{output}: {error.strerror}") from error
        note(f"{count} keys in {output}")
        return
    published = sorted(keyring.published(), key=lambda key: key.statement.valid_from)
    if as_json:
        typer.echo(orjson.dumps(published).decode())
        return
    out.print(keys_table(published, keyring))


def keys_table(published: Iterable[PublishedKey], keyring: Keyring) -> Table:
    """Return whose keys they are, and until when; ids are whole, since other commands take them."""
    table = Table(
        Column("key", no_wrap=True),
        Column("writer", overflow="fold"),
        Column("valid from", no_wrap=True),
        "until",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for key in published:
        statement = key.statement
        until = "" if statement.valid_until is None else iso_time(statement.valid_until)
        revocation = keyring.revocation(statement.key)
        if revocation is not None:
            until = f"revoked {iso_time(revocation.at)}: {revocation.reason}"
        table.add_row(statement.key, statement.writer, iso_time(statement.valid_from), until)
    return table


@evidence.command()
def archive(
    to: Annotated[
        str | None,
        typer.Option("--to", help="Directory or URL.  [env: SHUNTER_ARCHIVE]", metavar="URL"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One round, and end.")] = False,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Keep evidence, roots and keys in Parquet files, each record once; runs until told to stop.

    One archiver per archive. Files are put by date and hour; what is older than
    SHUNTER_ARCHIVE_DAYS and under no hold is deleted.

    Example: shunter evidence archive --to /srv/evidence --once
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, archive=to
    )
    if settings.archive is None:
        raise UserError("name the archive: --to URL, or SHUNTER_ARCHIVE")
    if settings.archive.startswith(("http://", "https://")):
        told = "an archive is written to a directory or an object store, and only read over HTTP"
        raise UserError(f"{settings.archive}: {told}")
    try:
        from shunter.archive import ArchiveError  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        told = f"an archive needs more: pip install 'shunter[archive]' ({error})"
        raise UserError(told) from error
    try:
        run(_archive(settings, settings.archive, once=once))
    except ArchiveError as error:
        raise UserError(str(error)) from error


async def _archive(settings: Settings, url: str, *, once: bool) -> None:
    from shunter.archive import Archive, Archiver, parse_holds  # noqa: PLC0415
    from shunter.archive.sink import Keeping  # noqa: PLC0415

    set_up_logging(settings.log_level, settings.log_format)
    names = Catalogue(settings)
    counts = await partition_counts(settings, [names.evidence])
    settings = settings.model_copy(update={"partitions": counts[names.evidence]})
    keeping = Keeping(settings.archive_days, parse_holds(settings.archive_holds))
    archiver = Archiver(
        KafkaLog(settings),
        Catalogue(settings),
        Archive(url),
        SystemClock(),
        rows_max=settings.archive_rows_max,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    while True:
        count = await archiver.round()
        gone = archiver.clean(keeping)
        note(f"{count} records archived, {len(gone)} files deleted")
        if once or stopped.is_set():
            return
        try:
            async with asyncio.timeout(settings.archive_every_s):
                await stopped.wait()
        except TimeoutError:
            continue
