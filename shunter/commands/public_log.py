"""`shunter evidence log`: the public log of signed roots, and the key that signs it."""

from pathlib import Path
from typing import Annotated

import typer

from shunter.client.kafka import note, run
from shunter.console import Bootstrap, Prefix, UserError, out, settings_from
from shunter.public_log.store import LogStoreError
from shunter.public_log.tree import LogForkError
from streams.engine.clock import SystemClock
from streams.kafka.log import KafkaLog
from topics import Catalogue, Settings
from topics.admin.provisioning import partition_counts
from topics.public_log.notes import NoteError, make_note_key
from topics.signing.key_files import KeyFileError, write_key_file


def log(
    to: Annotated[
        str | None,
        typer.Option("--to", help="Directory or URL.  [env: SHUNTER_PUBLIC_LOG]", metavar="URL"),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Of the log.  [env: SHUNTER_PUBLIC_LOG_KEY]", metavar="FILE"),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="Its witnesses.  [env: SHUNTER_PUBLIC_LOG_POLICY]", metavar="FILE"
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One round, and end.")] = False,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Append signed roots to the public log, and publish checkpoints that witnesses have cosigned.

    Runs until told to stop. One process writes a log; a second one is refused. Any web server, or
    the object store itself, may serve its files.

    Example: shunter evidence log --to /srv/log --key log.key --policy policy.txt
    """
    # The web server and all: other commands of evidence need none.
    from shunter.processes.public_log import run_public_log  # noqa: PLC0415

    settings = settings_from(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=topic_prefix,
        public_log=to,
        public_log_key=key,
        public_log_policy=policy,
    )
    roots = Catalogue(settings).evidence_roots
    counts = run(partition_counts(settings, [roots]))
    settings = settings.model_copy(update={"partitions": counts[roots]})
    try:
        if not once:
            run_public_log(settings)
        run(_once(settings))
    except (NoteError, LogStoreError, LogForkError, KeyFileError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


def log_keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    origin: Annotated[
        str,
        typer.Option("--origin", help="The log's name for ever, such as log.example.com/shunter."),
    ],
) -> None:
    """Make the key of a public log; prints its vkey, for policies and witnesses.

    Example: shunter evidence log-keygen log.key --origin log.example.com/shunter
    """
    if path.exists():
        raise UserError(f"{path} is there already; a log keeps its key")
    try:
        key = make_note_key(origin)
        write_key_file(path, f"{key.text}\n".encode())
    except NoteError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    out.print(key.verifier.text, highlight=False, soft_wrap=True)


async def _once(settings: Settings) -> None:
    from shunter.processes.public_log import make_public_log  # noqa: PLC0415

    public = make_public_log(settings, KafkaLog(settings), SystemClock())
    count = await public.round()
    state = public.state
    note(f"{count} roots appended, {state.size} in the log, {state.published} of them published")
    for name, why in public.witnesses.last_failure.items():
        note(f"witness {name} does not cosign: {why}")
    if state.published < state.size:
        raise UserError("no quorum of witnesses: the checkpoint is not published; run it again")
