"""`shunter topics resume`: let a group go on where its progress can't be read."""

from typing import Annotated

import typer

from shunter.client import note, run
from shunter.client_submit import producer_of
from shunter.console import Bootstrap, Prefix, UserError, settings_from
from streams import KafkaLog, Partition
from streams.notary import last_head
from streams.progress import read_progress
from topics import Catalogue, Progress, Settings, encode, progress_key
from topics.admin import partition_counts


def resume(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The consumer group.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Its input topic.")],
    partition: Annotated[int, typer.Argument(metavar="PARTITION", help="The partition.", min=0)],
    at: Annotated[
        int,
        typer.Option("--at", help="The first offset that is not done.", metavar="OFFSET", min=0),
    ],
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
) -> None:
    """Write the progress of a group on a partition, where the newest record of it can't be read.

    All below OFFSET counts as done, and nothing from there on: what is done there already is done
    twice, and what is not done below it is lost. Where the newest record can be read nothing is
    changed.

    Example: shunter topics resume inference.router inference.requests 0 --at 1500
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    run(_resume(settings, group, Partition(topic, partition), at))
    note(f"{group} goes on at offset {at} of {topic}[{partition}]; start its processes again")


async def _resume(settings: Settings, group: str, partition: Partition, at: int) -> None:
    names = Catalogue(settings)
    wanted = [names.progress, names.evidence_roots, partition.topic]
    counts = await partition_counts(settings, wanted)
    if partition.number >= counts[partition.topic]:
        raise UserError(
            f"{partition.topic} has no partition {partition.number}: it has"
            f" {counts[partition.topic]}, counted from 0"
        )
    log = KafkaLog(settings)
    first, end = (await log.bounds([partition]))[partition]
    if not first <= at <= end:
        raise UserError(f"{partition} has offsets {first} to {end}, and --at is {at}")
    stored = await read_progress(log, names.progress, group, [partition])
    if partition not in stored.unreadable:
        known = stored.known.get(partition)
        told = "there is none" if known is None else f"it stands at {known.next_offset}"
        raise UserError(f"the progress of {group} on {partition} has nothing to resolve: {told}")
    settings = settings.model_copy(update={"partitions": counts[names.evidence_roots]})
    chain = f"{group}-{partition.topic}-{partition.number}"
    progress = Progress(at, head=await last_head(Catalogue(settings), chain, log))
    async with producer_of(settings) as producer:
        await producer.send_and_wait(
            names.progress,
            encode(progress),
            key=progress_key(group, partition.topic, partition.number),
            partition=partition.number,
        )
