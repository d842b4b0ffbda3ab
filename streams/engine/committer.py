"""Transactions: the output of a stage for a partition becomes visible atomically, once or never.

Each partition has one transaction at a time; the caller holds the lock of the transactor.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, TypeVar

from streams.engine.continuity import BrokenPartitions
from streams.engine.group_offsets import GroupOffsets
from streams.engine.log import Log, LogError, Outgoing, Partition, TakenOverError, Writer
from streams.engine.progress import writer_id
from streams.engine.retries import until_passed
from streams.engine.signer import Signer
from streams.engine.stage import Effect, Observer, Refusal, Stage, Timed, TransactionPlan
from topics import Progress, encode, progress_key
from topics.signing.signed_root import ChainHead

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Few enough to finish long before the broker ends their transaction.
TRIED_AT_ONCE = 20
# Each may last as long as a transaction, plus the time for a new writer.
COMMITS_MAX = 5


class _Attempt(NamedTuple):
    """State that is kept once a transaction is committed."""

    progress: Progress
    head: ChainHead | None
    sealed: list[Outgoing]


class Committer:
    """Commits a stage's work, with one writer per partition."""

    def __init__(
        self,
        log: Log,
        stage: Stage,
        signer: Signer,
        progress_topic: str,
        transaction_s_max: float,
        observers: Sequence[Observer],
        timed: Timed,
    ) -> None:
        self._log = log
        self._stage = stage
        self._signer = signer
        self._progress_topic = progress_topic
        self._transaction_s_max = transaction_s_max
        self._observers = observers
        self._timed = timed
        self._group_offsets = GroupOffsets(log)
        self._writers: dict[Partition, Writer] = {}
        self._visible: dict[Partition, Progress | None] = {}
        self._attempts: dict[Partition, _Attempt] = {}
        self._topic_ids: dict[str, str] = {}
        self._epochs: dict[Partition, int | None] = {}
        self._broken = BrokenPartitions(log, stage.group, progress_topic, signer)

    async def _write(self, partition: Partition, work: TransactionPlan) -> None:
        """Commit the work, without the records that the log refuses."""
        await self._replace_cut_off(partition)
        while refusals := await self._commit_once(partition, work):
            await self._start_over(partition)
            for refusal in await self._culprits(partition, refusals):
                self._replace(work, refusal)
        self._stage.done(partition, work)
        for observe in self._observers:
            observe(partition, work.effects)

    async def _commit_once(self, partition: Partition, work: TransactionPlan) -> list[Refusal]:
        """Commit, retry while nothing was committed, and return what was refused.

        If its broker dies, the outcome of a transaction is unknown until the progress is read.

        Raises:
            LogError: none of the transactions has ended.
        """
        for number in range(1, COMMITS_MAX + 1):
            self._attempts.pop(partition, None)
            try:
                return await self._in_time(self._commit(partition, work))
            except Exception as error:
                if not self._log.is_passing(error):
                    raise
                logger.warning("a transaction on %s, no. %d: %r", partition, number, error)
                if number == COMMITS_MAX:
                    raise LogError(
                        f"{number} transactions on {partition} did not end; is Kafka healthy?"
                    ) from error
            if await self._was_committed(partition):
                return []
        raise AssertionError("the last try returns or raises")

    async def _in_time(self, transaction: Awaitable[T]) -> T:
        """Wait for a transaction, but no longer than the broker keeps it open.

        A connection cut at the wrong moment, or a transaction that the broker aborted while the
        process slept, would make the client wait for ever, and block the lock and the group.
        """
        async with asyncio.timeout(self._transaction_s_max):
            return await transaction

    async def _commit(self, partition: Partition, work: TransactionPlan) -> list[Refusal]:
        """Write the work as one transaction; leave it open and return what was refused."""
        writer, chain = self._writers[partition], self._transactional_id(partition)
        began_at = asyncio.get_running_loop().time()
        await writer.begin()
        visible = self._visible.get(partition)
        last = None if visible is None else visible.head
        sealed, head = self._signer.seal(chain, last, work.effects)
        topic_id, epoch = self._topic_ids.get(partition.topic), self._epochs.get(partition)
        progress = work.progress.with_head(head).on_log(topic_id, epoch)
        own = Effect(None, [self._progress_record(partition, progress), *sealed])
        refusals = await self._send(writer, [*work.effects, own])
        if refusals:
            return refusals
        self._attempts[partition] = _Attempt(progress, head, sealed)
        await writer.commit()
        self._timed(self._stage.group, partition, asyncio.get_running_loop().time() - began_at)
        self._committed(partition)
        return []

    def _committed(self, partition: Partition) -> None:
        progress, head, sealed = self._attempts.pop(partition)
        self._visible[partition] = progress
        self._group_offsets.moved(partition, progress.next_offset)
        self._signer.committed(self._transactional_id(partition), head, sealed)

    async def _send(self, writer: Writer, effects: Sequence[Effect]) -> list[Refusal]:
        """Send all records, wait for all, and return those refused."""
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

        The broker refuses a whole produce batch for one bad record. If several records were
        refused, they are sent one by one, in transactions that are always aborted.

        Raises:
            LogError: each passes alone, so none can be replaced.
        """
        if len(refusals) == 1:
            return refusals
        culprits: list[Refusal] = []
        left = refusals
        while left:
            tried = left[:TRIED_AT_ONCE]
            passed = await self._passing(partition, tried)
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
        """Begin a transaction, and return how many records pass in it before one is refused."""

        async def attempt() -> int:
            try:
                return await self._in_time(self._try(partition, refusals))
            except Exception as error:
                if self._log.is_passing(error):
                    await self._start_over(partition)
                raise

        return await until_passed(self._log, f"finding what {partition} is refused", attempt)

    async def _try(self, partition: Partition, refusals: Sequence[Refusal]) -> int:
        writer = self._writers[partition]
        await writer.begin()
        for number, (_, record, _) in enumerate(refusals):
            if await self._send(writer, [Effect(None, [record])]):
                return number
        return len(refusals)

    async def _replace_cut_off(self, partition: Partition) -> None:
        """Replace a writer whose last commit may have lost its end by the broker's death.

        If markers are missing on some partitions (``streams/kafka/transaction_recovery.py``), their
        readers wait for them, and the abort of our next transaction would apply to the committed
        records. A broker that hands over what it leads before it stops loses none, and to ask is
        much less than to replace all writers of a process at once.
        """
        writer = self._writers[partition]
        if writer.is_cut_off and not await writer.has_ended():
            # Answered when the broker is back, however long that takes.
            await self._log.committed(partition)
            await self._start_over(partition)

    async def _start_over(self, partition: Partition) -> None:
        """Abort by fencing: a refused record leaves a gap that only a new producer can pass.

        This also fences a successor, if there is one because we slept; the progress shows what it
        has written since (found by the simulation, seed 5097).

        Raises:
            TakenOverError: there is a successor.
        """
        stored = await self._renew(partition)
        if stored != self._visible.get(partition):
            raise TakenOverError(f"another has taken over {partition} and gone on")

    async def _was_committed(self, partition: Partition) -> bool:
        """Replace the writer, and return whether its last transaction was committed.

        Raises:
            TakenOverError: there is a successor.
            LogError: nothing tells.
        """
        attempt, visible = self._attempts.get(partition), self._visible.get(partition)
        if not await self._log.is_member():
            raise TakenOverError(f"the group gives {partition} to another")
        stored = await self._renew(partition)
        if attempt is not None and attempt.progress == stored != visible:
            self._committed(partition)
            return True
        if stored != visible:
            raise TakenOverError(f"another has taken over {partition} and gone on")
        if attempt is not None and attempt.progress == visible:
            raise LogError(f"a transaction on {partition} leaves no trace of its end")
        return False

    async def _renew(self, partition: Partition) -> Progress | None:
        """Fence with a new writer, and return the progress committed so far."""

        async def attempt() -> Progress | None:
            await self._writers[partition].close()
            await self._fence(partition)
            stored, errors = await self._broken.stored([partition])
            if partition in errors:
                raise errors[partition]
            return stored.get(partition)

        return await until_passed(self._log, f"a new writer of {partition}", attempt)

    async def _fence(self, partition: Partition) -> None:
        self._writers[partition] = await self._log.fence(self._transactional_id(partition))

    def _replace(self, work: TransactionPlan, refusal: Refusal) -> None:
        effect, record, error = refusal
        trace = {"trace_id": refusal.trace_id}
        if record.spare is not None:
            logger.warning(
                "%s refused a record, which is cut: %s", record.topic, error, extra=trace
            )
            cut = record.spare()
            effect.records = [cut if each is record else each for each in effect.records]
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
