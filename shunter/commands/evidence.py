"""`shunter evidence`: the keys that sign it, and the archive that keeps it."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table

from shunter.audit import Keyring
from shunter.audit.files import write_keys
from shunter.audit.keyring import when
from shunter.audit.topic import read_keys
from shunter.client.kafka import note, run
from shunter.client.submit import producer_of
from shunter.commands.public_log import log, log_keygen
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from streams.engine.clock import SystemClock
from streams.kafka.log import KafkaLog
from streams.logs import set_up_logging
from topics import Catalogue, KeyEntry, Revocation, Settings, encode
from topics.admin.provisioning import partition_counts
from topics.signing.key_files import KeyFileError
from topics.signing.keys import load_signing_key, write_signing_key

evidence = typer.Typer(
    name="evidence", help="Keys that sign evidence, its archive and its public log."
)
evidence.command()(log)
evidence.command("log-keygen")(log_keygen)


@evidence.command()
def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="PEM file to write.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the key there, which vouches for the new.")
    ] = False,
) -> None:
    """Make a key for SHUNTER_EVIDENCE_KEY; a process signs with it from its next start on.

    Example: shunter evidence keygen router-0.pem
    """
    try:
        keys = [Ed25519PrivateKey.generate()]
        if replace:
            keys.append(load_signing_key(path).private)
        elif path.exists():
            raise UserError(f"{path} is there already; --replace takes its place")
        write_signing_key(path, keys, time.time())
        key = load_signing_key(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except KeyFileError as error:
        raise UserError(str(error)) from error
    out.print(f"key {key.id} in {path}", highlight=False)


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
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    keyring = run(_published(settings))
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
    table = Table("key", "writer", "valid from", "until", box=None, pad_edge=False)
    for key in published:
        statement = key.statement
        until = "" if statement.valid_until is None else when(statement.valid_until)
        revocation = keyring.revocation(statement.key)
        if revocation is not None:
            until = f"revoked {when(revocation.at)}: {revocation.reason}"
        table.add_row(statement.key, statement.writer, when(statement.valid_from), until)
    out.print(table)


@evidence.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `evidence keys` shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for who verifies.")],
    at: Annotated[
        float | None,
        typer.Option("--at", help="Epoch seconds from which on it is not believed; now if unset."),
    ] = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Tell verifiers to believe nothing that a key has signed from a moment on.

    It stops no process: restart the one that holds the key first, with another.

    Example: shunter evidence revoke 0f3c5ad1f2b54dd1b1fc0ab1a2ff3e21 --reason "a disk was stolen"
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    known = {each.statement.key for each in run(_published(settings)).published()}
    if key not in known:
        raise UserError(f"no key {key!r:.80} was published; `shunter evidence keys` lists them")
    revocation = Revocation(key, time.time() if at is None else at, reason)
    run(_publish(settings, f"revoked/{key}", KeyEntry(revocation=revocation)))
    out.print(f"key {key} is revoked from {when(revocation.at)} on", highlight=False)


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


async def _published(settings: Settings) -> Keyring:
    names = Catalogue(settings)
    await partition_counts(settings, [names.evidence_keys])
    keyring = Keyring()
    await read_keys(KafkaLog(settings), names, keyring)
    return keyring


async def _publish(settings: Settings, key: str, entry: KeyEntry) -> None:
    async with producer_of(settings) as producer:
        topic = Catalogue(settings).evidence_keys
        await producer.send_and_wait(topic, encode(entry), key=key.encode())
