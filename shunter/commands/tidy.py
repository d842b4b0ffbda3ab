"""`shunter topics tidy`: delete what compacted topics keep of those that are gone."""

import time
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import orjson
import typer

from shunter.client.kafka import run
from shunter.client.submit import producer_of
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from shunter.logs.tidy import progress_keys, silent_heartbeats, spent_keys
from streams.kafka.log import KafkaLog
from topics import Catalogue, Settings
from topics.admin.provisioning import AdminError, partition_counts

DAY_S = 86_400.0


class _Tombstone(NamedTuple):
    topic: str
    key: bytes
    partition: int


def tidy(
    silent_days: Annotated[
        float,
        typer.Option("--silent-days", min=0.01, help="How long an instance has not reported."),
    ] = 1.0,
    gone: Annotated[
        list[str] | None,
        typer.Option(
            "--gone", metavar="POOL", help="A pool whose topics were deleted; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be deleted, and delete nothing.")
    ] = False,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Delete what compacted topics keep of instances, signing keys and pools that are gone.

    Heartbeats of instances that are silent; keys, and their last heads, that have signed nothing
    that is still on the topics; the progress of a pool that is named. It may run while all works.

    Example: shunter topics tidy --silent-days 7
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    found = run(_tidy(settings, silent_days * DAY_S, gone or (), dry_run=dry_run))
    if as_json:
        typer.echo(orjson.dumps({"deleted": not dry_run, **found}).decode())
        return
    for topic, count in found.items():
        out.print(f"{topic}: {count} records{' would go' if dry_run else ' deleted'}")


async def _tidy(
    settings: Settings, silent_s: float, gone: Sequence[str], *, dry_run: bool
) -> dict[str, int]:
    names = Catalogue(settings)
    wanted = [names.pool_status, names.evidence_keys, names.evidence, names.evidence_roots]
    counts = await partition_counts(settings, [*wanted, names.progress])
    settings = settings.model_copy(update={"partitions": counts[names.evidence]})
    names, log = Catalogue(settings), KafkaLog(settings)
    await _check_gone(settings, gone)
    tombstones = [
        _Tombstone(names.pool_status, key, 0)
        for key in await silent_heartbeats(log, names, time.time() - silent_s)
    ]
    tombstones += [_Tombstone(names.evidence_keys, key, 0) for key in await spent_keys(log, names)]
    tombstones += [
        _Tombstone(names.progress, key, number)
        for pool in gone
        for key, number in progress_keys(names, pool)
    ]
    if not dry_run:
        async with producer_of(settings) as producer:
            for topic, key, partition in tombstones:
                await producer.send_and_wait(topic, None, key=key, partition=partition)
    topics = (names.pool_status, names.evidence_keys, names.progress)
    return {topic: sum(each.topic == topic for each in tombstones) for topic in topics}


async def _check_gone(settings: Settings, pools: Sequence[str]) -> None:
    """Make sure that nobody works by the progress that is to be deleted."""
    for pool in pools:
        for topic in Catalogue(settings).pool_topics(pool):
            try:
                await partition_counts(settings, [topic.name])
            except AdminError:
                continue
            raise UserError(
                f"{topic.name} is there, and so its workers need their progress; delete the"
                " topics of the pool first"
            )
