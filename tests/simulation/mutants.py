"""Transactors, logs and stages that break one rule each: what the simulation must catch."""

import asyncio
import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from memory_log import MemoryWriter

from policies import Rates, release_inputs_of
from simulation.cluster import SimLog
from simulation.requests import HURRIED
from streams.batcher.stage import Batcher
from streams.cancellation.stage import Canceller
from streams.config.active_policy import DecisionContext
from streams.engine.clock import BrokerClock
from streams.engine.log import GroupOffset, Log, LogError, Outgoing, Partition, Record
from streams.engine.stage import Effect, ReadTo, Refusal, TransactionPlan
from streams.engine.transactor import Transactor
from streams.router.stage import Router
from topics import Progress
from workers.stage.worker import Worker

_serial = itertools.count()


class OwnIdEachTime(Transactor):
    """Breaks rule 1: no id is used twice, so that nobody is fenced."""

    def _transactional_id(self, partition: Partition) -> str:
        return f"{super()._transactional_id(partition)}-{next(_serial)}"


class BelievesThePosition(Transactor):
    """Breaks rule 2: goes on where the client stands, which it learned before the fencing."""

    async def _take_over(self, given: Collection[Partition]) -> bool:
        seek = self._log.seek
        self._log.seek = lambda *_: None  # type: ignore[method-assign]
        try:
            return await super()._take_over(given)
        finally:
            self._log.seek = seek  # type: ignore[method-assign]


class AsksBeforeFencing(Transactor):
    """Breaks rule 2 too: what a predecessor commits after it was asked for is not known."""

    async def _take_over(self, given: Collection[Partition]) -> bool:
        new = [p for p in given if p not in self._writers]
        known = {p: await self._log.committed(p) for p in new}
        stored, _ = await self._broken.stored(new)
        await asyncio.sleep(0.5)
        for partition in new:
            writer = await self._log.fence(self._transactional_id(partition))
            offset, progress = known[partition], stored.get(partition)
            if offset is not None:
                progress = (
                    Progress(offset) if progress is None else progress.further(Progress(offset))
                )
            told = await self._stage.restore(partition, progress, self._log)
            start = 0 if progress is None else progress.next_offset
            self._writers[partition] = writer
            self._log.seek(partition, start if told is None else told.next_offset)
        if not self._is_ours(given):
            return False
        self._given = None
        return True


class _NoLock:
    async def __aenter__(self) -> None:
        # Time must pass: a step that is not locked out has nothing else to wait for.
        await asyncio.sleep(0.001)

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

    async def _ended(self) -> bool:
        return True


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


class LeavesLateOnesBehind(Transactor):
    """Breaks rule 3: what comes late is waited for by no rebalance, takeover or stop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"together_s": 0.0})

    async def _ended(self) -> bool:
        return True


class SwallowsRebalanceErrors(Transactor):
    """Breaks rule 5 too: goes on with partitions whose takeover has failed."""

    async def _take_over(self, given: Collection[Partition]) -> bool:
        try:
            return await super()._take_over(given)
        except LogError:
            self._given = None
            return True


class DoesNotLookForSuccessor(Transactor):
    """Starts over by fencing, as one does who never slept and has no successor."""

    async def _start_over(self, partition: Partition) -> None:
        await self._writers[partition].close()
        self._writers[partition] = await self._log.fence(self._transactional_id(partition))


class RepeatsWithoutLooking(Transactor):
    """Makes a transaction again whose answer was lost, as if it could not have been committed."""

    async def _was_committed(self, partition: Partition) -> bool:
        stored = await self._renew(partition)
        self._visible[partition] = stored
        return False


class BelievesInTheCommit(Transactor):
    """Takes a transaction for committed whose answer was lost."""

    async def _was_committed(self, partition: Partition) -> bool:
        self._visible[partition] = await self._renew(partition)
        return True


class KeepsCutOffWriters(Transactor):
    """Goes on with a writer whose last commit may lack markers."""

    async def _replace_cut_off(self, partition: Partition) -> None:
        pass


class LeavesReadersWaiting(Transactor):
    """Replaces a writer that was cut off only when there is something to write."""

    async def _run(self, partition: Partition, records: Sequence[Record]) -> None:
        work = await self._stage.work(partition, records)
        if work is not None:
            await self._write(partition, work)


class MissesTheCut(MemoryWriter):
    """Looks at its connections after a commit, when the client has new ones."""

    async def commit(self, moved: GroupOffset | None = None) -> None:
        await super().commit(moved)
        self._connected_at = self._cluster.restarts


class FencesBeforeCompleting(SimLog):
    """Lets the coordinator forget that the last transaction was a commit."""

    async def fence(self, transactional_id: str) -> MemoryWriter:
        self.cluster.fence(transactional_id)
        return await super().fence(transactional_id)


class NeverCompletes(SimLog):
    """Leaves to others what a dying broker has left open."""

    async def fence(self, transactional_id: str) -> MemoryWriter:
        await self._call()
        self.writers.add(transactional_id)
        return self.writer(self, transactional_id, self.cluster.fence(transactional_id))


class KnowsNoEpochs(SimLog):
    """Takes a log that has lost its end, and grown again, for what it was."""

    async def epoch_end(self, partition: Partition, leader_epoch: int) -> int | None:
        await self._call()
        return None


class BeginsAnew(SimLog):
    """Reads a log from its beginning where it ends before the position, as clients may be told."""

    def _take(
        self, records_max: int, paused: Collection[Partition], *, of_each: bool
    ) -> dict[Partition, Sequence[Record]]:
        for partition, position in self._positions.items():
            log = self.cluster.logs[partition]
            if position > log.end:
                self._positions[partition], self._epochs[partition] = log.first, None
        return super()._take(records_max, paused, of_each=of_each)


class NoProgress(Transactor):
    """Breaks progress as data: of one stage only the group's offset is believed."""

    of = ""

    def _progress_record(self, partition: Partition, progress: Progress) -> Outgoing:
        record = super()._progress_record(partition, progress)
        if f".{self.of}" in self._stage.group:
            record.key = b"unread/" + (record.key or b"")
        return record


class NoProgressOfRouter(NoProgress):
    of = "router"


class NoProgressOfWorker(NoProgress):
    of = "worker"


class NoProgressOfCanceller(NoProgress):
    of = "canceller"


class IgnoresConstraints(Router):
    """Sends a request to whatever pool comes first in the alphabet."""

    def _write(self, asked: Any, now: float) -> Effect:
        options, case = self._situation.options, asked.case
        first = options.by_pool[min(p for p in options.by_pool if p.startswith("premium"))][0]
        if case.decision.action == "place":
            asked.case = replace(case, decision=replace(case.decision, option=first))
        return super()._write(asked, now)


class PlacesWithoutEvidence(Router):
    """Sends a request on its way and says nothing of it."""

    def _write(self, asked: Any, now: float) -> Effect:
        effect = super()._write(asked, now)
        if asked.case.decision.action != "place":
            return effect
        return Effect(effect.source, effect.records[:1], subject=effect.subject)


class SkipsBadRecords(Router):
    """Passes over what it can't read."""

    def _begin(self, record: Record, request: Any, first: int | None, now: float) -> Any:
        begun = super()._begin(record, request, first, now)
        is_bad = isinstance(begun, Effect) and begun.is_dead_letter
        return Effect(record, []) if is_bad else begun


class StopsAtBadRecords(Router):
    """Ends at what it can't read, and so does each successor."""

    def _begin(self, record: Record, request: Any, first: int | None, now: float) -> Any:
        begun = super()._begin(record, request, first, now)
        if isinstance(begun, Effect) and begun.is_dead_letter:
            raise LogError("a record is unreadable")
        return begun


class ForgetsIds(Router):
    """Knows no id that its predecessor has read."""

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        await super().restore(partition, None, log)


class WritesWhatItSaw(Router):
    """Leaves out of a block, of which its predecessor saw the beginning, what that had seen."""

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        await super().restore(partition, progress, log)
        for recent in self._duplicates._recent.values():
            recent._sightings.clear()


class TellsTooMuchHasEnded(Batcher):
    """Tells its successor to read on where it stands, though it holds what came before."""

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        work = await super().work(partition, records)
        if work is not None:
            work.progress = replace(work.progress, held_from=work.progress.next_offset)
        return work


class HoldsInMemory(Batcher):
    """Reads on where its predecessor stood, who alone knew what was held."""

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> ReadTo:
        end = await super().restore(partition, progress, log)
        held = self._partitions[partition]
        for member in list(held.windows.members()):
            held.drop(member.profile.id)
        return end


class LeavesNoTombstone(Batcher):
    """Releases a request, and leaves it to be found again."""

    def _release_member(self, *details: Any) -> list[Outgoing]:
        return [record for record in super()._release_member(*details) if record.value is not None]


class HoldsWithoutLimit(Batcher):
    """Takes whatever comes."""

    def wants(self, partition: Partition) -> bool:
        return True


class GivesUpInSilence(Batcher):
    """Drops what it can't release in time."""

    def _give_up(self, held: Any, end: Any, now: float) -> Effect:
        effect = super()._give_up(held, end, now)
        return Effect(None, [r for r in effect.records if r.value is None], subject=end)


class WritesInputsLate(Batcher):
    """Notes what a release was judged on when the view has counted it already."""

    def _release(self, held: Any, release: Any, judged: Any, now: float) -> Effect:
        late = replace(judged, inputs=release_inputs_of(release, self._situation))
        return super()._release(held, release, late, now)


class _OneRate(Rates):
    def wait_s(self, tenant: str, at: float, part: float) -> float:
        return super().wait_s(HURRIED, at, part)


class LimitsEverybody(Router):
    """Holds all tenants to the rate of one of them."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._gate._rates = _OneRate(self._situation.policy)


class EvidencesNoCancellation(Canceller):
    """Reads cancellations and says nothing of them."""

    def _evidence(self, record: Record, now: float) -> Effect:
        return Effect(record, [])


class ForgetsFinished(Worker):
    """Breaks out-of-order progress: what is finished above the lowest open offset is not told."""

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        only = None if progress is None else Progress(progress.next_offset)
        await super().restore(partition, only, log)


class TakesWithoutLimit(Worker):
    """Takes whatever comes."""

    def wants(self, partition: Partition) -> bool:
        return True


class RunsWhatIsLate(Worker):
    """Looks at no deadline."""

    async def _execute(self, task: Any) -> Effect:
        profile = replace(task.routed.profile, deadline=1e12)
        return await super()._execute(replace(task, routed=replace(task.routed, profile=profile)))


class RunsOn(Worker):
    """Looks at the deadline before a request runs, and not while it does."""

    async def _execute(self, task: Any) -> Effect:
        if self._clock.now() >= task.routed.profile.deadline:
            return await super()._execute(task)
        profile = replace(task.routed.profile, deadline=1e12)
        return await super()._execute(replace(task, routed=replace(task.routed, profile=profile)))


class CancelsInSilence(Worker):
    """Drops what a client has cancelled."""

    def _end_cancelled(self, lane: Any, task: Any) -> None:
        lane.ready.append((task.routed.record.offset, Effect(task.routed.record, [])))


class KnowsNoCancellation(Worker):
    """Runs what a client has cancelled."""

    def _take(self, lane: Any, record: Record) -> None:
        find = self._cancellations.find
        self._cancellations.find = lambda request_id: None  # type: ignore[method-assign]
        super()._take(lane, record)
        self._cancellations.find = find  # type: ignore[method-assign]


class NamesTheFirstPolicy(Router):
    """Decides by what is in force, and writes down what was when it began."""

    def take_context(self, terms: DecisionContext) -> None:
        super().take_context(replace(terms, evidence_writer=self._evidence_writer))


class KeepsItsClock(BrokerClock):
    """Believes the machine, whatever the broker says."""

    def told(self, broker_s: float, sent_at: float, heard_at: float) -> bool:
        return False
