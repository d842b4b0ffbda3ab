"""Transactors and a worker that break one rule each: what the simulation must catch."""

import asyncio
import itertools
from collections.abc import Collection, Sequence
from types import TracebackType

from streams.log import LogError, Outgoing, Partition
from streams.progress import read_progress
from streams.stage import Effect
from streams.transactor import Refusal, Transactor
from topics import Progress
from workers import Worker

_serial = itertools.count()


class OwnIdEachTime(Transactor):
    """Breaks rule 1: no id is used twice, so that nobody is fenced."""

    def _transactional_id(self, partition: Partition) -> str:
        return f"{super()._transactional_id(partition)}-{next(_serial)}"


class BelievesThePosition(Transactor):
    """Breaks rule 2: goes on where the client stands, which it learned before the fencing."""

    async def _take_over(self, partitions: Collection[Partition]) -> None:
        seek = self._log.seek
        self._log.seek = lambda _partition, _offset: None  # type: ignore[method-assign]
        try:
            await super()._take_over(partitions)
        finally:
            self._log.seek = seek  # type: ignore[method-assign]


class AsksBeforeFencing(Transactor):
    """Breaks rule 2 too: what a predecessor commits after it was asked for is not known."""

    async def _take_over(self, partitions: Collection[Partition]) -> None:
        new = [p for p in partitions if p not in self._writers]
        known = {p: await self._log.committed(p) for p in new}
        stored = await read_progress(self._log, self._progress_topic, self._stage.group, new)
        await asyncio.sleep(0.5)
        for partition in new:
            writer = await self._log.fence(self._transactional_id(partition))
            offset, progress = known[partition], stored.get(partition)
            if offset is not None:
                progress = (
                    Progress(offset) if progress is None else progress.further(Progress(offset))
                )
            start = await self._stage.restore(partition, progress, self._log)
            if start is None:
                start = 0 if progress is None else progress.next_offset
            self._writers[partition] = writer
            self._log.seek(partition, start)


class _NoLock:
    async def __aenter__(self) -> None:
        await asyncio.sleep(0)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await asyncio.sleep(0)


class NoCriticalSection(Transactor):
    """Breaks rule 3: rebalances fall into the middle of poll, work and commit."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._lock = _NoLock()  # type: ignore[assignment]


class AwaitsNoSend(Transactor):
    """Breaks rule 4: the commit is left to tell of refusals, which it does not."""

    async def _send(self, writer: object, effects: Sequence[Effect]) -> list[Refusal]:
        for effect in effects:
            for record in effect.records:
                await writer.send(record)  # type: ignore[attr-defined]
        return []


class GoesOnAfterErrors(Transactor):
    """Breaks rule 5: takes the next poll after an error as if nothing had been."""

    async def step(self) -> int:
        try:
            return await super().step()
        except LogError:
            self._failure = None
            await asyncio.sleep(0.1)
            return 0


class NoProgress(Transactor):
    """Breaks progress as data: only the group's offset is believed."""

    def _progress_record(self, partition: Partition, progress: Progress) -> Outgoing:
        record = super()._progress_record(partition, progress)
        record.key = b"unread/" + (record.key or b"")
        return record


class ForgetsFinished(Worker):
    """Breaks out-of-order progress: what is finished above the lowest open offset is not told."""

    async def restore(self, partition: Partition, progress: Progress | None, log: object) -> None:
        only = None if progress is None else Progress(progress.next_offset)
        await super().restore(partition, only, log)  # type: ignore[arg-type]
