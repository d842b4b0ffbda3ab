"""Continuity of a log: detect if it was replaced or has lost records since it was read.

Kafka can lose the end of a log: after an unclean leader election, a power failure under a single
replica, or the restore of a disk. A topic can also be deleted and made again. In both cases offsets
name other records than those that were read. To read from the beginning would then serve old
requests again; to continue at the offset would skip new ones. So a reader compares three things
with the log before it continues: the topic's id, the end of the log, and the end of the records
written under the leader epoch of the last one read (KIP-320). The last detects a tail that was lost
and has grown again since.
"""

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

from streams.engine.log import Log, LogError, Partition, Record
from streams.engine.progress import UnreadableProgressError, read_progress, stand_in, writer_id
from streams.engine.signer import Signer
from topics import Progress

logger = logging.getLogger(__name__)

# Interval of the check whether a broken log was recovered.
LOOK_AGAIN_S = 5.0
# A recently deposed leader may report an older end: a fault is checked again.
TRIES, RETRY_S = 8, 0.5
# Interval of the looks at quiet partitions, and how long one may delay a poll.
QUIET_LOOK_S, QUIET_ANSWER_S_MAX = 10.0, 0.25


class BrokenLogError(LogError):
    """Progress on a partition doesn't fit its log.

    Attributes:
        partition: the partition.
        end: the end of the part of the log that progress is about; 0 for another topic.
        is_another: True where the topic was deleted and made again.
    """

    def __init__(
        self, group: str, partition: Partition, progress: Progress, end: int, *, is_another: bool
    ) -> None:
        self.partition = partition
        self.end = end
        self.is_another = is_another
        topic, number = partition
        done = done_by(progress)
        what = (
            f"{topic} was deleted and made again: {group} has done {done} of {partition} as it was"
            if is_another
            else f"{partition} has lost its end: {group} has done {done}, and what"
            f" it has read ends at {end} (an unclean leader election, a power failure, or a disk"
            " that was restored)"
        )
        super().__init__(
            f"{what}. Nothing of the partition is taken until somebody has decided:"
            f" `shunter topics recover {group} {topic} {number}` tells what is taken and what is"
            " given up"
        )


def done_by(progress: Progress) -> str:
    """Return in words what is done by a progress."""
    beyond = len(progress.finished)
    return f"all below {progress.next_offset}" + (f" and {beyond} from there on" if beyond else "")


async def check_continuity(log: Log, group: str, partition: Partition, progress: Progress) -> None:
    """Check that a partition's log is the one that progress is about, without losses.

    Raises:
        BrokenLogError: it isn't, or has lost its end.
        LogError: the cluster can't be asked.
    """
    for error in (await find_breaks(log, group, {partition: progress})).values():
        raise error


async def find_breaks(
    log: Log, group: str, positions: Mapping[Partition, Progress]
) -> dict[Partition, BrokenLogError]:
    """Return which of these partitions' logs are not those that progress is about, or lost records.

    All are asked about at once: to find out takes seconds, of one partition as of a hundred.

    Raises:
        LogError: the cluster can't be asked.
    """
    for tries in count(1):
        found = await _breaks_of(log, group, positions)
        if not found or tries == TRIES:
            return found
        positions = {partition: positions[partition] for partition in found}
        await asyncio.sleep(RETRY_S)
    raise AssertionError("the last try returns")


async def _breaks_of(
    log: Log, group: str, positions: Mapping[Partition, Progress]
) -> dict[Partition, BrokenLogError]:
    found: dict[Partition, BrokenLogError] = {}
    topics = {p.topic for p, progress in positions.items() if progress.topic_id is not None}
    topic_ids = await log.topic_ids(topics) if topics else {}
    same: list[Partition] = []
    for partition, progress in positions.items():
        if progress.topic_id in (None, topic_ids.get(partition.topic)):
            same.append(partition)
        else:
            found[partition] = BrokenLogError(group, partition, progress, 0, is_another=True)
    if not same:
        return found
    bounds = await log.bounds(same)
    ends = await asyncio.gather(
        *(_end_of_read(log, p, positions[p].leader_epoch, bounds[p][1]) for p in same)
    )
    for partition, end in zip(same, ends, strict=True):
        progress = positions[partition]
        # A record that is finished above an open one was read too, and may be gone while all below
        # that is there: what stands at its offset then is another.
        if progress.reach > end:
            found[partition] = BrokenLogError(group, partition, progress, end, is_another=False)
    return found


async def _end_of_read(log: Log, partition: Partition, epoch: int | None, end: int) -> int:
    """Return where the records up to a leader epoch end, at most the end of the log."""
    if epoch is None:
        return end
    epoch_end = await log.epoch_end(partition, epoch)
    # A log without the epoch has no record of it left, or never had.
    return end if epoch_end is None else min(end, epoch_end)


async def newest_epoch(
    log: Log,
    group: str,
    records: Sequence[Record],
    position: int,
    known: int | None,
) -> int | None:
    """Return the leader epoch of the last of these records, which follow those before a position.

    If it is newer than the known one, check that the log has kept all records below the position.

    Raises:
        BrokenLogError: it has lost some, and grown again.
        LogError: the cluster can't be asked.
    """
    newest = records[-1].leader_epoch
    if known is None or newest is None or newest <= known:
        return newest if known is None else known
    for record in records:
        if record.leader_epoch is not None and record.leader_epoch > known:
            break
        position = record.offset + 1
    partition = records[0].partition
    # Records at the position and beyond were read: only the older epoch's end can be before it.
    # That is one request over an open connection, where the whole check makes a client; after a
    # broker's end each partition of a process has a new epoch.
    end = await log.epoch_end(partition, known)
    if end is not None and end < position:
        await check_continuity(log, group, partition, Progress(position, leader_epoch=known))
    return newest


class QuietPartitions:
    """Looks now and then whether what was read of partitions is still there, of quiet ones too.

    A log that has lost its end and has grown again to where its reader stands, and no further,
    shows that reader nothing new: what stands there now would wait until more comes.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._look_at = 0.0
        self._moved: set[Partition] = set()

    async def look(
        self,
        group: str,
        polled: Collection[Partition],
        reached: Mapping[Partition, int],
        epochs: Mapping[Partition, int | None],
    ) -> None:
        """Look, if it is time, at partitions of which nothing was polled since the last time.

        Args:
            group: that reads them.
            polled: partitions of which something was read just now.
            reached: the offset after the last record read of each.
            epochs: the leader epoch of that record, where it is known.

        Raises:
            BrokenLogError: one has lost what was read.
        """
        self._moved.update(polled)
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return
        self._look_at = now + QUIET_LOOK_S
        moved, self._moved = self._moved, set()
        quiet = {
            partition: Progress(offset, leader_epoch=epoch)
            for partition, offset in reached.items()
            if partition not in moved and (epoch := epochs.get(partition)) is not None
        }
        try:
            for partition in await self._suspects(quiet):
                await check_continuity(self._log, group, partition, quiet[partition])
        except BrokenLogError:
            raise
        except Exception as error:
            if not (isinstance(error, LogError) or self._log.is_passing(error)):
                raise
            logger.debug("whether quiet partitions are whole is not known: %r", error)

    async def _suspects(self, quiet: Mapping[Partition, Progress]) -> list[Partition]:
        async with asyncio.timeout(QUIET_ANSWER_S_MAX):
            ends = await asyncio.gather(
                *(self._log.epoch_end(p, each.leader_epoch or 0) for p, each in quiet.items())
            )
        return [
            partition
            for (partition, each), end in zip(quiet.items(), ends, strict=True)
            if end is not None and end < each.next_offset
        ]


class BrokenPartitions:
    """Partitions of a member whose log is broken, and from which nothing is taken.

    All others continue. A broken one is taken over once somebody has written progress that fits its
    log.
    """

    def __init__(self, log: Log, group: str, progress_topic: str, signer: Signer) -> None:
        self._log = log
        self._signer = signer
        self._group = group
        self._progress_topic = progress_topic
        self._stored: dict[Partition, Progress | None] = {}
        self._look_again_at = 0.0

    def __iter__(self) -> Iterator[Partition]:
        """Yield the partitions."""
        return iter(self._stored)

    def clear(self) -> None:
        """Forget all: they belong to another process."""
        self._stored.clear()

    async def stored(
        self, partitions: Collection[Partition]
    ) -> tuple[dict[Partition, Progress], dict[Partition, LogError]]:
        """Return the progress of these partitions, and the errors of unreadable ones.

        Raises:
            LogError: the cluster can't be asked.
        """
        log, group = self._log, self._group
        known, unreadable = await read_progress(log, self._progress_topic, group, partitions)
        errors: dict[Partition, LogError] = {}
        for partition, record in unreadable.items():
            head = await self._signer.last_head(writer_id(group, partition), log)
            try:
                known[partition] = await stand_in(log, group, partition, record, head)
            except UnreadableProgressError as error:
                errors[partition] = error
        return known, errors

    async def find(
        self,
        known: Mapping[Partition, Progress | None],
        stored: Mapping[Partition, Progress],
        errors: Mapping[Partition, LogError],
    ) -> list[Partition]:
        """Return which of these partitions are broken, and remember them.

        Args:
            known: the progress of each.
            stored: that on the progress topic, which the group's offset may exceed.
            errors: of unreadable progress.

        Raises:
            LogError: the cluster can't be asked.
        """
        checked = {
            partition: replace(
                progress, topic_id=stored[partition].topic_id if partition in stored else None
            )
            for partition, progress in known.items()
            if progress is not None and partition not in errors
        }
        found: dict[Partition, LogError] = dict(errors)
        found |= await find_breaks(self._log, self._group, checked)
        for partition in known:
            self._stored.pop(partition, None)
            if partition in found:
                logger.error("%s", found[partition])
                self._stored[partition] = stored.get(partition)
        self._look_again_at = asyncio.get_running_loop().time() + LOOK_AGAIN_S
        return [partition for partition in known if partition in found]

    async def are_recovered(self) -> bool:
        """Check periodically if the progress of a broken partition has changed."""
        now = asyncio.get_running_loop().time()
        if not self._stored or now < self._look_again_at:
            return False
        self._look_again_at = now + LOOK_AGAIN_S
        partitions = list(self._stored)
        try:
            found = await read_progress(self._log, self._progress_topic, self._group, partitions)
        except Exception as error:
            if not self._log.is_passing(error):
                raise
            logger.warning("whether broken partitions are recovered is not known: %r", error)
            return False
        return any(found.known.get(p) not in (None, self._stored[p]) for p in partitions)
