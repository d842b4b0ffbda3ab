"""`shunter evidence keygen`, `introduce`, `revoke` and `publish`: whose word is believed."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shunter.audit import Keyring
from shunter.audit.files import read_entries, write_entries
from shunter.audit.topic import read_keys
from shunter.client.kafka import note, run
from shunter.client.submit import producer_of
from shunter.console import Bootstrap, Prefix, UserError, out, settings_from
from streams.kafka.log import KafkaLog
from topics import Catalogue, KeyEntry, Revocation, Settings, encode
from topics.admin.provisioning import partition_counts
from topics.iso_time import iso_time
from topics.signing import introductions
from topics.signing.key_files import KeyFileError
from topics.signing.keys import SigningKey, load_signing_key, write_signing_key

DAY_S = 86_400.0
# Of the year 9999: milliseconds in place of seconds are beyond it.
LAST_S = 253_402_300_799
_ID = re.compile(r"[0-9a-f]{32}")

SignedBy = Annotated[
    Path, typer.Option("--signed-by", metavar="FILE", help="PEM file of the installation key.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", help="Write it for `shunter evidence publish`, and ask no broker: offline."
    ),
]


def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="PEM file to write.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the key there, which vouches for the new.")
    ] = False,
    installation: Annotated[
        bool,
        typer.Option(
            "--installation", help="An installation key: to introduce others, and be kept offline."
        ),
    ] = False,
) -> None:
    """Make a key for SHUNTER_EVIDENCE_KEY; a process signs with it from its next start on.

    With --installation, make the key whose fingerprint auditors trust. To replace that one, let it
    introduce its successor: `shunter evidence introduce NEW.pem --may-introduce '*'`.

    Example: shunter evidence keygen router-0.pem
    """
    if installation and replace:
        raise UserError(
            "an installation key is not replaced in its file, since auditors trust its fingerprint:"
            " make another, and let the old one introduce it with --may-introduce '*'"
        )
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
    out.print(f"key {key.id} in {path}", highlight=False, soft_wrap=True)
    if installation:
        note(f"auditors verify with --trust {key.id}; keep the file where no process runs")


def introduce(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, or a PEM file.")],
    signed_by: SignedBy,
    writer: Annotated[
        str | None,
        typer.Option("--writer", help="Whose key it is, as roots name it: `router/router-0`."),
    ] = None,
    may_introduce: Annotated[
        str | None,
        typer.Option(
            "--may-introduce",
            metavar="WRITERS",
            help="It introduces keys of writers itself: of one, or of all that begin like"
            " `router/*`. For SHUNTER_EVIDENCE_INTRODUCER.",
        ),
    ] = None,
    valid_days: Annotated[
        float | None, typer.Option("--valid-days", min=0.001, help="Unset: until it is revoked.")
    ] = None,
    output: Output = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Say whose a key is, signed with the installation key; `audit verify --trust` believes that.

    Example: shunter evidence introduce hosts.pem --may-introduce '*' --signed-by installation.pem
    """
    if (writer is None) == (may_introduce is None):
        raise UserError("say whose key it is, --writer NAME, or that it --may-introduce others")
    if "" in (writer, may_introduce):
        raise UserError("--writer and --may-introduce name writers, as `router/router-0`: not ''")
    by, name = _load(signed_by), _id_of(key)
    if by.id == name:
        raise UserError(f"{signed_by} is the key itself, which can't introduce itself")
    # It may have signed before, as early as it says itself.
    since = 0.0 if _ID.fullmatch(key) else (_load(Path(key)).valid_from or 0.0)
    until = None if valid_days is None else time.time() + valid_days * DAY_S
    introduction = introductions.introduce(
        by, name, writer or may_introduce or "", since, until, introduces=writer is None
    )
    _hand_out([KeyEntry(introduction=introduction)], output, bootstrap_servers, topic_prefix)
    what = f"the key of {writer}" if writer else f"one that introduces {may_introduce}"
    out.print(f"{by.id} introduces {name} as {what}", highlight=False, soft_wrap=True)


def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `evidence keys` shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for who verifies.")],
    signed_by: Annotated[
        Path | None,
        typer.Option(
            "--signed-by",
            metavar="FILE",
            help="PEM file of the installation key; `audit verify --trust` believes no other.",
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(
            "--at",
            min=0,
            max=LAST_S,
            help="Epoch seconds from which on it is not believed; now if unset.",
        ),
    ] = None,
    output: Output = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Tell verifiers to believe nothing that a key has signed from a moment on.

    It stops no process: restart the one that holds the key first, with another.

    Example: shunter evidence revoke 0f3c5ad1f2b54dd1b1fc0ab1a2ff3e21 --reason "a disk was stolen"
    """
    since = time.time() if at is None else at
    if signed_by is not None:
        revocation = introductions.revoke(_load(signed_by), _id_of(key), since, reason)
    else:
        settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
        known = {each.statement.key for each in run(published_keys(settings)).published()}
        if key not in known:
            raise UserError(f"no key {key!r:.80} was published; `shunter evidence keys` lists them")
        revocation = Revocation(key, since, reason)
    _hand_out([KeyEntry(revocation=revocation)], output, bootstrap_servers, topic_prefix)
    told = f"key {revocation.key} is revoked from {iso_time(since)} on"
    out.print(told, highlight=False, soft_wrap=True)
    if signed_by is None:
        note("nobody has signed that: who verifies with --trust will not believe it (--signed-by)")


def publish(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As --output has written it.")],
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Publish introductions and revocations that were signed elsewhere.

    Example: shunter evidence publish introductions.json
    """
    entries = [e for e in read_entries(file) if e.introduction or e.revocation]
    keyring = Keyring()
    for number, entry in enumerate(entries):
        keyring.add(entry, f"{file}[{number}]")
    if keyring.refused or not entries:
        where, why = (keyring.refused or [(str(file), "no introduction and no revocation")])[0]
        raise UserError(f"{where}: {why}")
    _hand_out(entries, None, bootstrap_servers, topic_prefix)
    out.print(f"{len(entries)} published", highlight=False)


async def published_keys(settings: Settings) -> Keyring:
    """Return the keys that are published, all trusted.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
    """
    names = Catalogue(settings)
    await partition_counts(settings, [names.evidence_keys])
    keyring = Keyring()
    await read_keys(KafkaLog(settings), names, keyring)
    return keyring


def _hand_out(
    entries: Sequence[KeyEntry], output: Path | None, servers: str | None, prefix: str | None
) -> None:
    """Write entries to a file, or publish them."""
    if output is None:
        run(_publish(settings_from(bootstrap_servers=servers, topic_prefix=prefix), entries))
        return
    try:
        write_entries(output, entries)
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}") from error


async def _publish(settings: Settings, entries: Sequence[KeyEntry]) -> None:
    topic = Catalogue(settings).evidence_keys
    await partition_counts(settings, [topic])
    async with producer_of(settings) as producer:
        for entry in entries:
            await producer.send_and_wait(topic, encode(entry), key=(entry.name or "").encode())


def _id_of(key: str) -> str:
    return key if _ID.fullmatch(key) else _load(Path(key)).id


def _load(path: Path) -> SigningKey:
    try:
        return load_signing_key(path)
    except KeyFileError as error:
        raise UserError(str(error)) from error
