"""What lies in the lanes of pools that have no worker to tell of it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from aiokafka.errors import KafkaError
from mode import Service

from policies import Options, Situation
from policies.autoscaling import SAMPLED_MAX, Work, alike, device_s, unread_demand
from streams.clock import Clock
from streams.log import Log, LogError, Partition, Record
from streams.progress import read_progress
from topics import BadRecordError, Catalogue, Placement, Profile, Progress
from topics import headers as h

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
# An open transaction may be in the way; then what was found before stands.
LOOK_S_MAX = 15.0
# What it takes to make a dead letter of a record that is no request, in no hurry.
UNFIT: Work = (0.001, float("inf"))


@dataclass(frozen=True, slots=True)
class _Found:
    """What waits on one partition up to its end: (device time, deadline) of each part of it."""

    end: int
    requests: int = 0
    work: tuple[Work, ...] = ()


class Stranded:
    """Looks into the lanes of each pool that no live worker tells the unread requests of.

    What its workers have finished is read from their progress. The next requests are read too, at
    most ``SAMPLED_MAX`` offsets of a partition; those beyond are taken to be like them. As nothing
    is sent to a pool without workers, this is done once after its last one is gone. Readers of
    their own do it, beside the stages.
    """

    def __init__(
        self,
        situation: Callable[[], Situation],
        log: Log,
        catalogue: Catalogue,
        clock: Clock,
    ) -> None:
        self._situation = situation
        self._log = log
        self._catalogue = catalogue
        self._clock = clock
        self._found: dict[str, dict[Partition, _Found]] = {}

    def requests(self, pool: str) -> int | None:
        """Return about how many requests lie there, None where that isn't known."""
        found = self._found.get(pool)
        return None if found is None else sum(each.requests for each in found.values())

    def due(self, pool: str) -> tuple[float, ...]:
        """Return their device time by when it is due (``DUE_S``); none where it isn't known."""
        found = self._found.get(pool, {})
        return unread_demand((w for each in found.values() for w in each.work), self._clock.now())

    async def look(self) -> None:
        """Look once. After an error what was found before stands.

        Raises nothing but what a defect would.
        """
        here = self._situation()
        pools = [pool for pool in here.options.by_pool if not is_told(here, pool)]
        # What a pool's workers tell themselves, and have told since, is out of date here.
        self._found = {pool: found for pool, found in self._found.items() if pool in pools}
        if not pools:
            return
        try:
            async with asyncio.timeout(LOOK_S_MAX):
                homes = {
                    Partition(topic.name, number): pool
                    for pool in pools
                    for topic in self._catalogue.pool_topics(pool)
                    for number in range(topic.partitions)
                }
                bounds = await self._log.bounds(homes)
                for pool in pools:
                    own = {p: bounds[p] for p in homes if homes[p] == pool}
                    self._found[pool] = await self._look_at(pool, own, here.options)
        except (TimeoutError, KafkaError, LogError, OSError) as error:
            logger.warning("what lies in the lanes of %s is not known: %r", ", ".join(pools), error)

    async def _look_at(
        self, pool: str, bounds: Mapping[Partition, tuple[int, int]], options: Options
    ) -> dict[Partition, _Found]:
        before = self._found.get(pool, {})
        found = {p: before.get(p, _Found(0)) for p in bounds}
        changed = [p for p, (_, end) in bounds.items() if end != found[p].end]
        group = self._catalogue.worker_group(pool)
        stored = await read_progress(self._log, self._catalogue.progress, group, changed)
        for partition in changed:
            first, end = bounds[partition]
            progress = stored.get(partition, Progress(0))
            progress = replace(progress, next_offset=max(first, progress.next_offset))
            found[partition] = await self._read(partition, progress, end, options, pool)
        return found

    async def _read(
        self, partition: Partition, progress: Progress, end: int, options: Options, pool: str
    ) -> _Found:
        start, finished = progress.next_offset, set(progress.finished)
        until = min(end, start + SAMPLED_MAX)
        records: list[Record] = []
        async for some in self._log.read({partition: start}, {partition: until}):
            records += [r for r in some if start <= r.offset < until and r.offset not in finished]
        served = {option.variant: option for option in options.by_pool[pool]}
        work = []
        for record in records:
            try:
                profile = h.read(record.headers, h.PROFILE, Profile)
                placement = h.read(record.headers, h.PLACEMENT, Placement)
                option = served[placement.variant]
            except (BadRecordError, KeyError):
                work.append(UNFIT)
                continue
            work.append((device_s(profile, option), profile.deadline))
        beyond = (end - until) / (until - start) if until < end else 0.0
        return _Found(
            end,
            round(len(records) * (1.0 + beyond)),
            (*work, *self._beyond(records, work, beyond)),
        )

    def _beyond(self, records: list[Record], work: list[Work], each: float) -> Iterable[Work]:
        """Return the work of what was not read, so many times what was."""
        if not records or not each:
            return ()
        since = records[-1].timestamp_ms / 1000
        seen = [
            (seconds, deadline - record.timestamp_ms / 1000)
            for record, (seconds, deadline) in zip(records, work, strict=True)
        ]
        return alike(seen, each, since, self._clock.now())


def is_told(here: Situation, pool: str) -> bool:
    """Tell whether a live worker of the pool tells what waits there unread."""
    return any(report.unread is not None for report in here.view.reports(pool))


class StrandedService(Service):  # type: ignore[misc]
    """Looks again and again, at a pace of its own."""

    mundane_level = "debug"

    def __init__(self, stranded: Stranded) -> None:
        super().__init__()
        self._stranded = stranded

    @Service.task  # type: ignore[untyped-decorator]
    async def _look(self) -> None:
        while not self.should_stop:
            await self._stranded.look()
            await self.sleep(LOOK_EVERY_S)
