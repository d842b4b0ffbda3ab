"""`shunter topics recover`: let a group go on where its progress doesn't fit the log."""

import time
from typing import Annotated

import typer

from shunter.client.kafka import note, run
from shunter.client.submit import producer_of
from shunter.console import Bootstrap, Prefix, UserError, out, settings_from
from streams.engine.broken_log_recovery import Recovery, RecoveryError, carry_out, plan
from streams.engine.clock import SystemClock
from streams.engine.log import LogError, Partition
from streams.hosting.assembly import introducer_of, make_signer
from streams.kafka.log import KafkaLog
from topics import Catalogue, KeyEntry, Settings, encode
from topics.admin.provisioning import partition_counts


def recover(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The consumer group.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Its input topic.")],
    partition: Annotated[int, typer.Argument(metavar="PARTITION", help="The partition.", min=0)],
    at: Annotated[
        int | None,
        typer.Option(
            "--at",
            help="The first offset that is not done; where the log tells it, that by default.",
            metavar="OFFSET",
            min=0,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Say what a group would take and give up of a partition that has lost its end, and do it.

    For a log that has lost its end, a topic that was deleted and made again, and progress that
    can't be read. The members of the group go on by themselves a few seconds later; what was done
    is written as evidence. Where the progress fits the log nothing is changed.

    Example: shunter topics recover inference.router inference.requests 0
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    try:
        run(_recover(settings, group, Partition(topic, partition), at, is_sure=yes))
    except (LogError, RecoveryError) as error:
        raise UserError(str(error)) from error


async def _recover(
    settings: Settings, group: str, partition: Partition, at: int | None, *, is_sure: bool
) -> None:
    names = Catalogue(settings)
    wanted = [names.progress, names.evidence_roots, names.evidence, partition.topic]
    counts = await partition_counts(settings, wanted)
    if partition.number >= counts[partition.topic]:
        raise UserError(
            f"{partition.topic} has no partition {partition.number}: it has"
            f" {counts[partition.topic]}, counted from 0"
        )
    settings = settings.model_copy(update={"partitions": counts[names.evidence]})
    log, names = KafkaLog(settings), Catalogue(settings)
    writer = f"recover/{settings.instance}"
    signer = make_signer(settings, writer, SystemClock())
    found = await plan(log, names, signer, group, partition, at)
    _show(found)
    if not is_sure and not typer.confirm("Go on so?", err=True):
        raise typer.Exit(1)
    published = signer.publish(settings.evidence_key_valid_s)
    async with producer_of(settings) as producer:
        # Nobody could check the root before that.
        key = f"key/{published.statement.key}".encode()
        value = encode(KeyEntry(published=published))
        await producer.send_and_wait(names.evidence_keys, value, key=key)
        introducer = introducer_of(settings)
        if introducer is not None:
            valid_s = settings.evidence_key_valid_s
            entry = KeyEntry(introduction=signer.introduce(introducer, valid_s))
            key = (entry.name or "").encode()
            await producer.send_and_wait(names.evidence_keys, encode(entry), key=key)
    await carry_out(log, names, signer, writer, found, time.time())
    note(f"{group} goes on at offset {found.at} of {partition}")


def _show(found: Recovery) -> None:
    out.print(found.message, markup=False, highlight=False, soft_wrap=True)
