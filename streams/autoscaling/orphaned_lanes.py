"""The backlog in the lanes of pools that have no worker to report it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from policies import Option, Situation
from policies.autoscaling import Work, alike, device_s, unread_demand
from policies.fleet_state.candidate_load import PoolLoad
from streams.engine.clock import Clock
from streams.engine.log import Log, LogError, Partition, Record
from streams.engine.progress import read_progress
from streams.service import Repeated
from topics import BadRecordError, Catalogue, Placement, Profile, Progress
from topics.records import headers as h

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
# For each pool. An open transaction may block it.
LOOK_S_MAX = 15.0
# Offsets read of each partition; the rest is assumed to be like them.
READ_OFFSETS_MAX = 50
# A worker that has just started may not know its backlog yet.
COMING_S_MAX = 30.0
# The work of dead-lettering a record that is no request, not urgent.
UNFIT: Work = (0.001, float("inf"))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The backlog of one partition up to its end; its work has parts of any size."""

    end: int
    requests: int = 0
    work: tuple[Work, ...] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    """The findings in a pool's lanes, and their time (epoch seconds).

    ``load`` was the pool's then: each heartbeat makes another, even the last of a leaving worker.
    """

    at: float
    load: PoolLoad
    found: Mapping[Partition, _Waiting]


class OrphanedLanes:
    """Inspects the lanes of each pool without a live worker.

    The finished work is read from the workers' progress; of the rest, the first records of each
    partition are read. Nothing is sent to a pool without workers, so this is done once after the
    last one is gone; until another appears, only the ends are asked for. It uses readers of its
    own, and no stage waits for it.
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
        """Return the approximate number of requests there, None if unknown."""
        look = self._looks.get(pool)
        return None if look is None else sum(each.requests for each in look.found.values())

    def due(self, pool: str) -> tuple[float, ...]:
        """Return their device time by due time (``DUE_S``), empty if unknown."""
        look = self._looks.get(pool)
        found = () if look is None else look.found.values()
        return unread_demand((w for each in found for w in each.work), self._clock.now())

    async def look(self) -> None:
        """Inspect the lanes once. On failure, the earlier findings stand."""
        view, now = self._situation().view, self._clock.now()
        pools = []
        for pool in self._situation().options.by_pool:
            workers = view.reports(pool)
            if not workers:
                pools.append(pool)
            elif any(w.unread is not None for w in workers) or self._is_old(pool, now):
                self._looks.pop(pool, None)
        lanes = {pool: self._lanes(pool) for pool in pools}
        for pool, found in await self._bounds(lanes):
            with self._unknown_told(pool):
                async with asyncio.timeout(LOOK_S_MAX):
                    self._looks[pool] = await self._look_at(pool, found)

    async def _bounds(
        self, lanes: Mapping[str, Sequence[Partition]]
    ) -> list[tuple[str, dict[Partition, tuple[int, int]]]]:
        """Return first offset and end of each partition, by pool, with one query."""
        wanted = [partition for own in lanes.values() for partition in own]
        bounds: Mapping[Partition, tuple[int, int]] = {}
        with self._unknown_told(*lanes):
            async with asyncio.timeout(LOOK_S_MAX):
                bounds = await self._log.bounds(wanted) if wanted else {}
        return [(pool, {p: bounds[p] for p in own}) for pool, own in lanes.items() if bounds]

    @contextlib.contextmanager
    def _unknown_told(self, *pools: str) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, KafkaError, LogError, OSError) as error:
            logger.warning("what lies in lanes of %s is not known: %r", ", ".join(pools), error)

    def _lanes(self, pool: str) -> list[Partition]:
        topics = self._catalogue.pool_topics(pool)
        return [Partition(topic.name, n) for topic in topics for n in range(topic.partitions)]

    def _is_old(self, pool: str, now: float) -> bool:
        look = self._looks.get(pool)
        return look is None or now - look.at > COMING_S_MAX

    async def _look_at(self, pool: str, bounds: Mapping[Partition, tuple[int, int]]) -> _Look:
        now, load = self._clock.now(), self._situation().view.load(pool)
        look = self._looks.get(pool)
        before = look.found if look is not None and look.load is load else {}
        found = {p: before.get(p, _Waiting(0)) for p in bounds}
        changed = {p: bound for p, bound in bounds.items() if found[p].end != bound[1]}
        if changed:
            found |= await self._read(pool, changed, now)
        return _Look(now, load, found)

    async def _read(
        self, pool: str, bounds: Mapping[Partition, tuple[int, int]], now: float
    ) -> dict[Partition, _Waiting]:
        group = self._catalogue.worker_group(pool)
        stored = await read_progress(self._log, self._catalogue.progress, group, list(bounds))
        done = {p: stored.known.get(p, Progress(0)) for p in bounds}
        options = {option.variant: option for option in self._situation().options.by_pool[pool]}
        found = {p: _Waiting(end) for p, (_, end) in bounds.items()}
        starts = {p: max(first, done[p].next_offset) for p, (first, _) in bounds.items()}
        width = READ_OFFSETS_MAX
        while starts := {p: start for p, start in starts.items() if start < found[p].end}:
            untils = {p: min(found[p].end, start + width) for p, start in starts.items()}
            seen: dict[Partition, list[tuple[Work, float]]] = {p: [] for p in starts}
            async for records in self._log.read(starts, untils):
                for record in records:
                    if record.offset not in done[record.partition].finished:
                        came_at = record.timestamp_ms / 1000
                        seen[record.partition].append((_work(record, options), came_at))
            for partition, until in untils.items():
                end, start = found[partition].end, starts[partition]
                beyond = (end - until) / (until - start)
                requests = round(len(seen[partition]) * (1 + beyond))
                work = tuple(_all_of(seen[partition], beyond, now))
                found[partition] = _Waiting(end, requests, work)
            # Records aborted, or finished out of order, are skipped.
            starts = {p: until for p, until in untils.items() if not seen[p]}
            width *= 2
        return found


def _work(record: Record, options: Mapping[str, Option]) -> Work:
    try:
        profile = h.read(record.headers, h.PROFILE, Profile)
        option = options[h.read(record.headers, h.PLACEMENT, Placement).model_variant]
    except (BadRecordError, KeyError):
        return UNFIT
    return device_s(profile, option), profile.deadline


def _all_of(seen: Sequence[tuple[Work, float]], beyond: float, now: float) -> Iterator[Work]:
    """Yield the work of the records read, and of the unread: ``beyond`` times as much."""
    yield from (work for work, _ in seen)
    if seen and beyond:
        rooms = [(seconds, deadline - came_at) for (seconds, deadline), came_at in seen]
        yield from alike(rooms, beyond, seen[-1][1], now)


class OrphanedLanesService(Repeated):
    """Inspects the lanes periodically."""

    def __init__(self, orphaned: OrphanedLanes) -> None:
        super().__init__(orphaned.look, LOOK_EVERY_S)
