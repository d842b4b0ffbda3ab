"""The transactor: reads, lets a stage work, and makes the effects visible exactly once.

Five rules, each found by breaking it (docs/decisions/0002-exactly-once.md):

1. One transactional producer per input partition, made when the partition is assigned. Its fixed
   id fences the predecessor and aborts its open transaction.
2. After fencing, read the progress and seek: the client's position may be stale. Progress is data,
   a record of each transaction; the group's offset follows it for tools, and counts where it is
   further ahead.
3. Poll, work and commit are one critical section, under the lock that rebalances take too. A commit
   that comes late is left behind, and waited for where a rebalance, a takeover or a stop needs that
   none is under way. New partitions are taken over in the next step: the client sends no heartbeat
   during its callback, and a restore that outlasts the session would lose all partitions again, for
   ever.
4. Every send is awaited before the commit, which itself never reports a refused record.
5. An error that passes with a broker, and a transaction that does not end, are not fatal: a new
   writer is fenced, and the progress tells whether the transaction was committed. If a partition
   has moved to another process, all are given up, and those that the group still assigns are taken
   over anew. Any other error ends the process; the supervisor starts another, which restores from
   the log.

``streams/engine/committer.py`` makes transactions and retries them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from streams.engine.committer import Committer
from streams.engine.concurrency import few_at_a_time, wait_for_all
from streams.engine.log import Log, LogError, Partition, Record, TakenOverError, Writer
from streams.engine.partition_runs import PartitionRuns
from streams.engine.retries import Limit, until_passed
from streams.engine.signer import Signer
from streams.engine.stage import Observer, ReadTo, Stage, Timed
from topics import Progress

logger = logging.getLogger(__name__)

T = TypeVar("T")

# While the records of one partition are processed, the broker sends those of another.
RESTORED_AT_ONCE = 4
# So long partitions wait for each other's commits. Out of step they would wait longer for their own
# (docs/decisions/0051-nobody-waits-for-a-late-commit.md); beyond it a broker is in trouble.
TOGETHER_S = 1.0
# While some come late, so long a poll lasts at most, and at least: theirs are polled after it.
LATE_POLL_S, LATE_POLL_S_MIN = 0.05, 0.01
# A change of policy waits for a moment without any, so there is one at least so often.
LATE_S_MAX = 30.0


class Transactor(Committer):
    """Runs one stage over the partitions assigned to this process."""

    def __init__(
        self,
        log: Log,
        stage: Stage,
        *,
        signer: Signer,
        progress_topic: str,
        poll_s_max: float,
        poll_records_max: int,
        transaction_s_max: float,
        observers: Sequence[Observer] = (),
        timed: Timed = lambda _group, _partition, _seconds: None,
        before_step: Callable[[], None] = lambda: None,
        together_s: float = TOGETHER_S,
    ) -> None:
        super().__init__(log, stage, signer, progress_topic, transaction_s_max, observers, timed)
        self._poll_s_max = poll_s_max
        self._poll_records_max = poll_records_max
        self._before_step = before_step
        self._together_s = together_s
        self._runs = PartitionRuns()
        self._lock = asyncio.Lock()
        self._failure: BaseException | None = None
        self._stopped = False
        # Assigned to us, and not taken over yet; None before the first rebalance.
        self._given: Collection[Partition] | None = None
        self._restoring: asyncio.Future[list[ReadTo | None]] | None = None
        self._limit = Limit()
        self._is_revoked = False
        self._is_doubtful = False
        self._has_share = False

    @property
    def partitions(self) -> Collection[Partition]:
        """The partitions that we have now."""
        return self._writers.keys()

    @property
    def broken(self) -> Collection[Partition]:
        """The partitions that the group gave us, and that wait for somebody to recover them."""
        return list(self._broken)

    async def lag(self) -> Mapping[Partition, int] | None:
        """Return the number of unread offsets of each of our partitions, None if unknown.

        It is unknown during a rebalance, and if the broker doesn't answer.
        """
        found = await self._log.lag()
        return found if self._has_share and found.keys() >= self._writers.keys() else None

    async def start(self) -> None:
        """Join the group; partitions are assigned during ``step``."""
        await self._log.join(self._stage.group, self._stage.topics, self)

    async def stop(self) -> None:
        """Stop between two transactions, so that none is open or half done."""
        self._stopped = True
        self._give_up_restoring()
        async with self._lock:
            # No step is in flight, and none begins.
            try:
                await self._runs.end()
            except Exception as error:
                # What it polled is in the log, for whoever comes next.
                self._failure = error
                logger.exception("a transaction fails while %s stops", self._stage.group)
            await self._group_offsets.tell_last()
        # Outside the lock: the client leaves when a running rebalance callback has ended, and that
        # takes the lock too.
        await self._log.leave()
        async with self._lock:
            await self._drop(list(self._writers))

    async def step(self) -> int:
        """Poll once, commit the stage's work, and return the number of records read.

        Raises:
            LogError: the process must end (rule 5).
        """
        return await self._alone(self._step) or 0

    async def take_over(self) -> None:
        """Take over newly assigned partitions, which the next step would do otherwise.

        Raises:
            LogError: the process must end (rule 5).
        """
        await self._alone(self._take_over_given)

    async def _alone(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Run it under the lock, unless we have stopped."""
        async with self._lock:
            if self._stopped:
                return None
            if self._failure is not None:
                raise LogError("a rebalance or an earlier step failed") from self._failure
            try:
                return await work()
            except (Exception, asyncio.CancelledError) as error:
                # The polled records are in no memory now: another step would skip or repeat them.
                self._failure = error
                await self._finish(error)
                raise

    async def _finish(self, failure: BaseException) -> None:
        """Let what was left behind end with the step, or be cancelled with it."""
        if isinstance(failure, asyncio.CancelledError):
            await self._runs.cancel()
        else:
            with contextlib.suppress(Exception):
                await self._runs.end()

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """Note partitions to take over in the next step (rule 3)."""
        self._given, self._is_doubtful = list(partitions), False

    async def revoked(self, partitions: Collection[Partition]) -> None:
        """Release partitions; holding the lock means they have no transaction in flight."""
        self._given, self._has_share, self._is_revoked = None, False, True
        self._is_doubtful = False
        self._give_up_restoring()
        try:
            async with self._lock:
                await self._ended()
                await self._drop(partitions)
                # Not before: a takeover may have found some broken meanwhile, and it would be taken
                # for ours once it is recovered (found by the simulation, seed 745).
                self._broken.clear()
                self._is_revoked = False
        except Exception as error:
            logger.exception("giving up %s failed", ", ".join(map(str, partitions)))
            self._failure = error

    async def _step(self) -> int:
        if not await self._take_over_given():
            return 0
        self._group_offsets.tell_if_due()
        if self._runs.late_s > LATE_S_MAX and not await self._ended():
            return 0
        timeout_s = min(self._poll_s_max, max(self._stage.idle_s(), 0.0))
        if self._runs:
            timeout_s = max(LATE_POLL_S_MIN, min(timeout_s, LATE_POLL_S))
        else:
            # No work of the stage is in flight here, on any of its partitions.
            self._before_step()
        paused = [p for p in self._writers if not self._stage.wants(p)]
        polled = await self._log.poll(
            timeout_s,
            self._poll_records_max,
            [*paused, *self._broken, *self._runs.partitions],
            of_each=not self._stage.accumulates,
        )
        ready = [p for p in self._writers if p not in self._runs.partitions]
        try:
            await self._runs.begin(
                ready, lambda p: self._run(p, polled.get(p, ())), self._together_s
            )
        except TakenOverError as error:
            await self._give_up_all(error)
            return 0
        return sum(len(records) for records in polled.values())

    async def _ended(self) -> bool:
        """Wait for what was left behind; return whether the partitions are still ours."""
        try:
            await self._runs.end()
        except TakenOverError as error:
            await self._give_up_all(error)
            return False
        return True

    async def _give_up_all(self, error: TakenOverError) -> None:
        """Forget all partitions; a rebalance or the group tells which are still ours."""
        logger.warning("%s; what this process has is given up, and taken over anew", error)
        if not self._is_revoked:
            self._given, self._is_doubtful = [*self._writers, *self._broken], True
        self._has_share = False
        with contextlib.suppress(TakenOverError):
            await self._runs.end()
        await self._drop(list(self._writers))

    async def _is_settled(self, given: Collection[Partition] | None) -> bool:
        """Return whether the group counts this member, if that was in doubt."""
        if self._is_doubtful and not await self._log.is_member():
            # Called for the error it raises if the group refuses us.
            await self._log.poll(self._poll_s_max, 1, given or ())
            return False
        self._is_doubtful = False
        return True

    async def _take_over_given(self) -> bool:
        if self._is_revoked:
            # Some of the revoked partitions may be half taken over.
            return False
        if self._given is None and await self._broken.are_recovered():
            self._given = [*self._writers, *self._broken]
        given = self._given
        if given is not None and not await self._ended():
            return False
        if not await self._is_settled(given) or given is not self._given:
            return False
        if given is None:
            return True
        new = [p for p in given if p not in self._writers]

        async def attempt() -> bool:
            if not self._is_ours(given):
                return False
            try:
                return await self._take_over(given)
            except Exception as error:
                if self._log.is_passing(error):
                    # A half-finished takeover starts again from its beginning.
                    await self._drop(new)
                raise

        self._limit = Limit()
        what = f"taking over {len(new)} partitions"
        return await until_passed(self._log, what, attempt, self._limit)

    async def _take_over(self, given: Collection[Partition]) -> bool:
        """Fence, find the predecessor's progress, restore; return whether they are still ours.

        A rebalance or a stop doesn't wait for a restore.
        """
        new = [p for p in given if p not in self._writers]
        await wait_for_all([self._fence(partition) for partition in new])
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
                self._signer.took_over(self._transactional_id(partition), progress.head)
            is_behind = progress is not None and progress.is_recovered
            if committed is not None and not is_behind:
                group = Progress(committed)
                # If both are at the same offset, only the first knows what is finished above.
                progress = group if progress is None else progress.further(group)
            known[partition] = progress
        for partition in await self._broken.find(known, stored, errors):
            del known[partition]
            await self._drop([partition])
        if not self._is_ours(given) or not await self._put_back(known) or not self._is_ours(given):
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
            self._begin(partition, progress, bounds[partition][0], told)
        self._given, self._has_share = None, True
        return True

    async def _put_back(self, known: Mapping[Partition, Progress | None]) -> bool:
        """Set the group's offsets back to what was recovered; return whether the group lets us.

        A member that had not noticed may have told a further one since, which the owner after us
        would go by (found by the simulation, seed 866).
        """
        behind = {p: each.next_offset for p, each in known.items() if each and each.is_recovered}
        try:
            if behind:
                await self._log.commit_offsets(behind)
        except LogError as error:
            logger.warning("the group's offsets are not set back: %s; once more", error)
            await self._drop(list(known))
            return False
        return True

    def _begin(
        self, partition: Partition, progress: Progress | None, first: int, told: ReadTo | None
    ) -> None:
        """Continue at the progress, or at the stage's position if it has one."""
        start, epoch = told or (first, None)
        if told is None and progress is not None:
            start, epoch = max(first, progress.next_offset), progress.leader_epoch
        self._epochs[partition] = epoch
        self._log.seek(partition, start, epoch)
        if progress is not None:
            # The predecessor may not have come to tell it.
            self._group_offsets.moved(partition, progress.next_offset)
        logger.info("took over %s at offset %d", partition, start)

    async def _restore(self, known: Mapping[Partition, Progress | None]) -> list[ReadTo | None]:
        restores = [partial(self._stage.restore, p, known[p], self._log) for p in known]
        self._restoring = asyncio.ensure_future(few_at_a_time(restores, RESTORED_AT_ONCE))
        try:
            # What there is to read may take minutes; without news the log gives up by itself.
            with self._limit.standing_still():
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
        self._group_offsets.forget(partitions)
        for partition in partitions:
            writer = self._writers.pop(partition, None)
            self._visible.pop(partition, None)
            self._epochs.pop(partition, None)
            if writer is not None:
                self._stage.forget(partition)
                writers.append(writer)
        # If connections hang each takes its whole time, and a rebalance waits for this.
        await wait_for_all([writer.close() for writer in writers])

    async def _run(self, partition: Partition, records: Sequence[Record]) -> None:
        # Even without work: readers of the last commit may be waiting.
        await self._replace_cut_off(partition)
        if records and (newest := records[-1].leader_epoch) is not None:
            # Progress may tell of records beyond these that a predecessor read and finished.
            known = self._epochs.get(partition)
            self._epochs[partition] = newest if known is None else max(known, newest)
        work = await self._stage.work(partition, records)
        if work is not None:
            await self._write(partition, work)
