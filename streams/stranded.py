"""What lies in the lanes of pools that have no worker to tell of it."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.errors import KafkaError
from mode import Service

from policies import Option, Situation
from policies.autoscaling import Work, alike, device_s, unread_demand
from policies.standing import PoolLoad
from streams.clock import Clock
from streams.log import Log, LogError, Partition, Record
from streams.progress import read_progress
from topics import BadRecordError, Catalogue, Placement, Profile, Progress
from topics import headers as h

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
# For each pool. An open transaction may be in the way.
LOOK_S_MAX = 15.0
# Of each partition so many offsets are read; what lies beyond them is taken to be like them.
READ_OFFSETS_MAX = 50
# A worker that has just come may not know yet what waits for it.
COMING_S_MAX = 30.0
# What it takes to make a dead letter of a record that is no request, in no hurry.
UNFIT: Work = (0.001, float("inf"))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What waits on one partition up to its end; of work there are parts of any size."""

    end: int
    requests: int = 0
    work: tuple[Work, ...] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found in the lanes of a pool, and when (epoch seconds).

    ``load`` was the pool's then: each heartbeat makes another, even the last of one that leaves.
    """

    at: float
    load: PoolLoad
    found: Mapping[Partition, _Waiting]


class Stranded:
    """Looks into the lanes of each pool without a live worker.

    What its workers have finished is read from their progress, and of what comes after that the
    first records of each partition. Nothing is sent to a pool without workers, so that this is
    done once after the last one is gone; until another is heard of, only the ends are asked for
    then. All of it goes by readers of its own, and no stage waits for it.
    """

    def __init__(
        self, situation: Callable[[], Situation], log: Log, catalogue: Catalogue, clock: Clock
    ) -> None:
        self._situation = situation
        self._log = log
        self._catalogue = catalogue
        self._clock = clock
        self._looks: dict[str, _Look] = {}

    def requests(self, pool: str) -> int | None:
        """Return about how many requests lie there, None where that isn't known."""
        look = self._looks.get(pool)
        return None if look is None else sum(each.requests for each in look.found.values())

    def due(self, pool: str) -> tuple[float, ...]:
        """Return their device time by when it is due (``DUE_S``), nothing where it isn't known."""
        look = self._looks.get(pool)
        found = () if look is None else look.found.values()
        return unread_demand((w for each in found for w in each.work), self._clock.now())

    async def look(self) -> None:
        """Look once. Where that fails, what was found before stands."""
        view, now = self._situation().view, self._clock.now()
        pools = []
        for pool in self._situation().options.by_pool:
            workers = view.reports(pool)
            if not workers:
                pools.append(pool)
            elif any(w.unread is not None for w in workers) or self._is_old(pool, now):
                self._looks.pop(pool, None)
        for pool in pools:
            try:
                async with asyncio.timeout(LOOK_S_MAX):
                    self._looks[pool] = await self._look_at(pool)
            except (TimeoutError, KafkaError, LogError, OSError) as error:
                logger.warning("what lies in the lanes of %s is not known: %r", pool, error)

    def _is_old(self, pool: str, now: float) -> bool:
        look = self._looks.get(pool)
        return look is None or now - look.at > COMING_S_MAX

    async def _look_at(self, pool: str) -> _Look:
        now, load = self._clock.now(), self._situation().view.load(pool)
        topics = self._catalogue.pool_topics(pool)
        lanes = [Partition(t.name, n) for t in topics for n in range(t.partitions)]
        bounds = await self._log.bounds(lanes)
        look = self._looks.get(pool)
        before = look.found if look is not None and look.load is load else {}
        found = {p: before.get(p, _Waiting(0)) for p in lanes}
        changed = [p for p in lanes if found[p].end != bounds[p][1]]
        if changed:
            found |= await self._read(pool, {p: bounds[p] for p in changed}, now)
        return _Look(now, load, found)

    async def _read(
        self, pool: str, bounds: Mapping[Partition, tuple[int, int]], now: float
    ) -> dict[Partition, _Waiting]:
        group = self._catalogue.worker_group(pool)
        stored = await read_progress(self._log, self._catalogue.progress, group, list(bounds))
        done = {p: stored.get(p, Progress(0)) for p in bounds}
        starts = {p: max(first, done[p].next_offset) for p, (first, _) in bounds.items()}
        untils = {p: min(end, starts[p] + READ_OFFSETS_MAX) for p, (_, end) in bounds.items()}
        options = {option.variant: option for option in self._situation().options.by_pool[pool]}
        seen: dict[Partition, list[tuple[Work, float]]] = {p: [] for p in bounds}
        wanted = {p: start for p, start in starts.items() if start < untils[p]}
        async for records in self._log.read(wanted, {p: untils[p] for p in wanted}):
            for record in records:
                if record.offset not in done[record.partition].finished:
                    came_at = record.timestamp_ms / 1000
                    seen[record.partition].append((_work(record, options), came_at))
        found = {}
        for partition, (_, end) in bounds.items():
            start, until = starts[partition], untils[partition]
            beyond = (end - until) / (until - start) if until < end else 0.0
            requests = round(len(seen[partition]) * (1 + beyond))
            work = tuple(_all_of(seen[partition], beyond, now))
            found[partition] = _Waiting(end, requests, work)
        return found


def _work(record: Record, options: Mapping[str, Option]) -> Work:
    try:
        profile = h.read(record.headers, h.PROFILE, Profile)
        option = options[h.read(record.headers, h.PLACEMENT, Placement).model_variant]
    except (BadRecordError, KeyError):
        return UNFIT
    return device_s(profile, option), profile.deadline


def _all_of(seen: Sequence[tuple[Work, float]], beyond: float, now: float) -> Iterator[Work]:
    """Yield the work of what was read, and of what wasn't: ``beyond`` times as much."""
    yield from (work for work, _ in seen)
    if seen and beyond:
        rooms = [(seconds, deadline - came_at) for (seconds, deadline), came_at in seen]
        yield from alike(rooms, beyond, seen[-1][1], now)


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
