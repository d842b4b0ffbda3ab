"""The transactor: reads, lets a stage work, and makes the effects visible exactly once.

Five rules, each found by breaking it (docs/decisions/0002-exactly-once.md):

1. One transactional producer per input partition, made when the partition is assigned. Its fixed
   id fences the predecessor and aborts what that left open.
2. After fencing, ask the broker for the committed offset and seek: the client's may be stale.
   Progress kept as data goes further than that where a broker's death lost the marker.
3. Poll, work and commit are one critical section, under the lock that rebalances take too. What a
   rebalance gives is taken over in the next step: the client sends no heartbeat while it calls us
   back, and a restore that outlasts the session would lose all again, for ever.
4. Every send is awaited before the commit, which itself never tells of a refused record.
5. Any other error ends the process; the supervisor starts another, which restores from the log.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from streams.continuity import BrokenPartitions
from streams.log import Log, LogError, Outgoing, Partition, Record, Writer
from streams.notary import Notary
from streams.progress import writer_id
from streams.stage import Effect, Observer, Refusal, Stage, Work
from streams.together import few_at_a_time, wait_for_all
from topics import Progress, encode, progress_key

logger = logging.getLogger(__name__)

T = TypeVar("T")

# While the records of one partition are gone through, the broker sends those of another.
RESTORED_AT_ONCE = 4
# So few that they are through long before the broker ends their transaction.
TRIED_AT_ONCE = 20


class Transactor:
    """Runs one stage over the partitions that the group gives to this process."""

    def __init__(
        self,
        log: Log,
        stage: Stage,
        *,
        notary: Notary,
        progress_topic: str,
        poll_s_max: float,
        poll_records_max: int,
        transaction_s_max: float,
        observers: Sequence[Observer] = (),
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._stage = stage
        self._notary = notary
        self._progress_topic = progress_topic
        self._poll_s_max = poll_s_max
        self._poll_records_max = poll_records_max
        self._transaction_s_max = transaction_s_max
        self._observers = observers
        self._before_step = before_step
        self._lock = asyncio.Lock()
        self._writers: dict[Partition, Writer] = {}
        self._visible: dict[Partition, Progress | None] = {}
        self._topic_ids: dict[str, str] = {}
        self._epochs: dict[Partition, int | None] = {}
        self._broken = BrokenPartitions(log, stage.group, progress_topic, notary)
        self._failure: BaseException | None = None
        self._stopped = False
        # Given to us, and not taken over yet; None before a rebalance has given anything.
        self._given: Collection[Partition] | None = None
        self._restoring: asyncio.Future[list[int | None]] | None = None
        self._is_revoked = False
        self._has_share = False

    @property
    def partitions(self) -> Collection[Partition]:
        """The partitions that are ours now."""
        return self._writers.keys()

    async def lag(self) -> Mapping[Partition, int] | None:
        """Return how many offsets of each of our partitions wait unread, None where unknown.

        It is unknown while the group shares its partitions out, and where the broker doesn't tell.
        """
        found = await self._log.lag()
        return found if self._has_share and found.keys() >= self._writers.keys() else None

    async def start(self) -> None:
        """Join the group; partitions arrive in the course of ``step``."""
        await self._log.join(self._stage.group, self._stage.topics, self)

    async def stop(self) -> None:
        """Leave between two transactions, so that nothing is open and nothing half done."""
        self._stopped = True
        self._give_up_restoring()
        async with self._lock:
            # No step is under way, and none begins.
            pass
        # Outside the lock: the client leaves when a rebalance callback under way has ended, and
        # that takes the lock too.
        await self._log.leave()
        async with self._lock:
            await self._drop(list(self._writers))

    async def step(self) -> int:
        """Poll once and commit what the stage makes of it; return the number of records read.

        Raises:
            LogError: the process must end (rule 5).
        """
        return await self._alone(self._step) or 0

    async def take_over(self) -> None:
        """Take over what a rebalance has given, which else the next step does.

        Raises:
            LogError: the process must end (rule 5).
        """
        await self._alone(self._take_over_given)

    async def _alone(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do it under the lock, unless we have stopped."""
        async with self._lock:
            if self._stopped:
                return None
            if self._failure is not None:
                raise LogError("a rebalance or an earlier step failed") from self._failure
            try:
                return await work()
            except BaseException as error:
                # What was polled is in no memory now: another step would skip or repeat it.
                self._failure = error
                raise

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """Take note of partitions to take over in the next step (rule 3)."""
        self._given = list(partitions)

    async def revoked(self, partitions: Collection[Partition]) -> None:
        """Let partitions go; the lock says that no transaction of theirs is under way."""
        self._given, self._has_share, self._is_revoked = None, False, True
        self._broken.clear()
        self._give_up_restoring()
        try:
            async with self._lock:
                await self._drop(partitions)
                self._is_revoked = False
        except Exception as error:
            logger.exception("giving up %s failed", ", ".join(map(str, partitions)))
            self._failure = error

    async def _step(self) -> int:
        if not await self._take_over_given():
            return 0
        # No work of the stage is under way here, on any of its partitions.
        self._before_step()
        paused = [p for p in self._writers if not self._stage.wants(p)] + list(self._broken)
        timeout_s = min(self._poll_s_max, max(self._stage.idle_s(), 0.0))
        polled = await self._log.poll(
            timeout_s, self._poll_records_max, paused, of_each=not self._stage.piles_up
        )
        await wait_for_all([self._run(p, polled.get(p, ())) for p in list(self._writers)])
        return sum(len(records) for records in polled.values())

    async def _take_over_given(self) -> bool:
        if self._is_revoked:
            # Of what is going, some may have been taken over by half.
            return False
        if self._given is None and await self._broken.are_recovered():
            self._given = [*self._writers, *self._broken]
        return self._given is None or await self._take_over(self._given)

    async def _take_over(self, given: Collection[Partition]) -> bool:
        """Fence, find out how far the predecessor came, restore; tell whether they are still ours.

        A rebalance, or our end, waits for no restore.
        """
        new = [p for p in given if p not in self._writers]
        writers = await asyncio.gather(*(self._log.fence(self._transactional_id(p)) for p in new))
        self._writers.update(zip(new, writers, strict=True))
        (stored, errors), offsets, bounds, topic_ids = await asyncio.gather(
            self._broken.stored(new),
            asyncio.gather(*(self._log.committed(p) for p in new)),
            self._log.bounds(new),
            self._log.topic_ids({p.topic for p in new}),
        )
        self._topic_ids |= topic_ids
        known: dict[Partition, Progress | None] = {}
        for partition, committed in zip(new, offsets, strict=True):
            progress = self._visible[partition] = stored.get(partition)
            if progress is not None:
                self._notary.took_over(self._transactional_id(partition), progress.head)
            if committed is not None:
                group = Progress(committed)
                # Where both stand at the same offset, only the first knows what is finished above.
                progress = group if progress is None else progress.further(group)
            known[partition] = progress
        for partition in await self._broken.find(known, stored, errors):
            del known[partition]
            await self._drop([partition])
        if not self._is_ours(given):
            return False
        try:
            starts = await self._restore(known)
        except asyncio.CancelledError:
            if self._is_ours(given):
                raise
            return False
        if not self._is_ours(given):
            return False
        for (partition, progress), told in zip(known.items(), starts, strict=True):
            first = bounds[partition][0]
            own = first if progress is None else max(first, progress.next_offset)
            start = own if told is None else told
            epoch = self._epochs[partition] = None if progress is None else progress.leader_epoch
            self._log.seek(partition, start, epoch)
            logger.info("took over %s at offset %d", partition, start)
        self._given, self._has_share = None, True
        return True

    async def _restore(self, known: Mapping[Partition, Progress | None]) -> list[int | None]:
        restores = [partial(self._stage.restore, p, known[p], self._log) for p in known]
        self._restoring = asyncio.ensure_future(few_at_a_time(restores, RESTORED_AT_ONCE))
        try:
            return await self._restoring
        finally:
            self._restoring = None

    def _is_ours(self, given: Collection[Partition]) -> bool:
        return self._given is given and not self._stopped

    def _give_up_restoring(self) -> None:
        if self._restoring is not None:
            self._restoring.cancel()

    async def _drop(self, partitions: Collection[Partition]) -> None:
        writers: list[Writer] = []
        for partition in partitions:
            writer = self._writers.pop(partition, None)
            self._visible.pop(partition, None)
            self._epochs.pop(partition, None)
            if writer is not None:
                self._stage.forget(partition)
                writers.append(writer)
        # Where connections hang each takes its whole time, and a rebalance waits for this.
        await wait_for_all([writer.close() for writer in writers])

    async def _run(self, partition: Partition, records: Sequence[Record]) -> None:
        # Even where there is nothing to do: readers of what was committed last may be waiting.
        await self._replace_cut_off(partition)
        if records and records[-1].leader_epoch is not None:
            self._epochs[partition] = records[-1].leader_epoch
        work = await self._stage.work(partition, records)
        if work is not None:
            await self._write(partition, work)

    async def _write(self, partition: Partition, work: Work) -> None:
        """Commit the work, without what the log won't take."""
        await self._replace_cut_off(partition)
        while refusals := await self._in_time(partition, self._commit(partition, work)):
            await self._start_over(partition)
            for refusal in await self._culprits(partition, refusals):
                self._replace(work, refusal)
        self._stage.done(partition, work)
        for observe in self._observers:
            observe(partition, work.effects)

    async def _in_time(self, partition: Partition, transaction: Awaitable[T]) -> T:
        """Wait for a transaction, but no longer than the broker lets it be open.

        A connection cut at the wrong moment, or a transaction that the broker aborted while the
        process slept, leaves the client waiting for ever; and with it the lock, and the group.
        """
        try:
            async with asyncio.timeout(self._transaction_s_max):
                return await transaction
        except TimeoutError as error:
            raise LogError(
                f"a transaction on {partition} did not end in {self._transaction_s_max} s"
            ) from error

    async def _commit(self, partition: Partition, work: Work) -> list[Refusal]:
        """Write the work as one transaction; leave it open and return what was refused."""
        writer, chain = self._writers[partition], self._transactional_id(partition)
        await writer.begin()
        visible = self._visible.get(partition)
        last = None if visible is None else visible.head
        sealed, head = self._notary.seal(chain, last, work.effects)
        topic_id, epoch = self._topic_ids.get(partition.topic), self._epochs.get(partition)
        progress = work.progress.with_head(head).on_log(topic_id, epoch)
        own = Effect(None, [self._progress_record(partition, progress), *sealed])
        refusals = await self._send(writer, [*work.effects, own])
        if refusals:
            return refusals
        await writer.commit(partition, work.progress.next_offset, self._stage.group)
        self._visible[partition] = progress
        self._notary.committed(chain, head, sealed)
        return []

    async def _send(self, writer: Writer, effects: Sequence[Effect]) -> list[Refusal]:
        """Send all, wait for all, and return what was refused."""
        sent: list[tuple[Effect, Outgoing, Awaitable[object]]] = []
        refusals: list[Refusal] = []
        for effect in effects:
            for record in effect.records:
                try:
                    sent.append((effect, record, await writer.send(record)))
                except self._log.refusals as error:
                    refusals.append(Refusal(effect, record, error))
        outcomes = await asyncio.gather(*(future for _, _, future in sent), return_exceptions=True)
        for (effect, record, _), outcome in zip(sent, outcomes, strict=True):
            if isinstance(outcome, self._log.refusals):
                refusals.append(Refusal(effect, record, outcome))
            elif isinstance(outcome, BaseException) and not refusals:
                raise outcome
        return refusals

    async def _culprits(self, partition: Partition, refusals: list[Refusal]) -> list[Refusal]:
        """Return the refusals that are a record's own fault, at most one of each effect.

        The broker refuses a whole produce batch for one bad record. Where several records fell,
        they are sent one by one, in transactions that are aborted whatever comes of it.

        Raises:
            LogError: each passes alone, so that there is none to replace.
        """
        if len(refusals) == 1:
            return refusals
        culprits: list[Refusal] = []
        left = refusals
        while left:
            tried = left[:TRIED_AT_ONCE]
            passed = await self._in_time(partition, self._passing(partition, tried))
            await self._start_over(partition)
            culprits += tried[passed : passed + 1]
            replaced = {id(culprit.effect) for culprit in culprits}
            left = [refusal for refusal in left[passed:] if id(refusal.effect) not in replaced]
        if not culprits:
            _, record, error = refusals[0]
            raise LogError(
                f"{record.topic} refuses {len(refusals)} records together but each alone: is its"
                f" max.message.bytes smaller than a produce batch? {error}"
            ) from error
        return culprits

    async def _passing(self, partition: Partition, refusals: Sequence[Refusal]) -> int:
        """Begin a transaction, and return how many pass in it before one is refused."""
        writer = self._writers[partition]
        await writer.begin()
        for number, (_, record, _) in enumerate(refusals):
            if await self._send(writer, [Effect(None, [record])]):
                return number
        return len(refusals)

    async def _replace_cut_off(self, partition: Partition) -> None:
        """Replace a writer that the broker's death may have robbed of the end of its last commit.

        Where markers are missing on some partitions (``streams/hanging.py``), their readers wait
        for them, and the abort of our next transaction would reach what was committed.
        """
        if self._writers[partition].is_cut_off:
            # Answered when the broker is back, however long that takes.
            await self._log.committed(partition)
            await self._start_over(partition)

    async def _start_over(self, partition: Partition) -> None:
        """Abort by fencing: a refused record leaves a gap that only a new producer can pass.

        That fences a successor too, if we slept and there is one; what it has written since then
        shows in the progress (found by the simulation, seed 5097).

        Raises:
            LogError: there is a successor.
        """
        await self._writers[partition].close()
        self._writers[partition] = await self._log.fence(self._transactional_id(partition))
        stored, _ = await self._broken.stored([partition])
        if stored.get(partition) != self._visible.get(partition):
            raise LogError(f"another has taken over {partition} and gone on")

    def _replace(self, work: Work, refusal: Refusal) -> None:
        effect, record, error = refusal
        trace = {"trace_id": refusal.trace_id}
        if effect.spare is not None and record is effect.records[0]:
            logger.warning(
                "%s refused a record, which is cut: %s", record.topic, error, extra=trace
            )
            effect.records[0], effect.spare = effect.spare, None
            return
        at = next((i for i, candidate in enumerate(work.effects) if candidate is effect), None)
        if at is None or effect.is_dead_letter:
            what = "its share of every transaction" if at is None else "even a dead letter"
            raise LogError(f"{record.topic} refuses {what}: {error}") from error
        logger.warning(
            "%s refused a record, which is replaced: %s", record.topic, error, extra=trace
        )
        work.effects[at : at + 1] = self._stage.refused(effect, record, error)

    def _progress_record(self, partition: Partition, progress: Progress) -> Outgoing:
        key = progress_key(self._stage.group, partition.topic, partition.number)
        return Outgoing(self._progress_topic, key, encode(progress), partition=partition.number)

    def _transactional_id(self, partition: Partition) -> str:
        return writer_id(self._stage.group, partition)
