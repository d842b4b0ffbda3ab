"""The batcher's state of one partition of the hold."""

import math
from dataclasses import dataclass, field, replace
from sys import intern

from policies import Arrivals, Member, ReleaseInputs, Situation, Windows, bind, windows_of
from policies.batching.groups import group_in
from streams.batcher.interning import share_common
from streams.batcher.payload_cache import Payloads
from streams.cancellation.index import Cancellations
from streams.engine.log import Partition, Record
from topics import BadRecordError, Profile, Progress, Shadow
from topics.records import headers as h

# Without a release a partition's progress, and the group's offset behind it, is only for lag tools,
# and advances no more often than this.
COMMIT_EVERY_S = 1.0
# The lowest held offset is searched no more often than this, nor than this many a second.
OLDEST_EVERY_S = 10.0
OLDEST_OF_PER_S = 10_000


@dataclass(frozen=True, slots=True)
class Judged:
    """The basis of a release, and what a second policy would have done instead."""

    inputs: ReleaseInputs | None = None
    shadow: Shadow | None = None


@dataclass(slots=True)
class HeldInAll:
    """Requests held over all partitions of a batcher."""

    count: int = 0


@dataclass(slots=True)
class HeldPartition:
    """The state of one partition of the hold."""

    partition: Partition
    windows: Windows
    payloads: Payloads
    in_all: HeldInAll = field(default_factory=HeldInAll)
    """Counts those of this partition too."""
    next_offset: int = 0
    leader_epoch: int | None = None
    """That of the last record, if known."""
    committed_offset: int = 0
    committed_at: float = 0.0
    unreadable: dict[bytes | int, tuple[Record, Exception]] = field(default_factory=dict)
    """Records to set aside, by key; those without key by offset."""
    cancelled: set[str] = field(default_factory=set)
    """The ids of held requests that a client cancelled."""
    outside: set[str] = field(default_factory=set)
    """The ids of held requests that the policy in force lets go nowhere."""
    held_from: int = 0
    """Nothing below it is held: the lowest offset at the last search."""
    look_again_at: float = -math.inf

    def join(self, in_all: HeldInAll) -> None:
        """Count with the other partitions of a batcher from now on."""
        self.in_all = in_all
        in_all.count += len(self.windows)

    def leave(self) -> None:
        """Count no more, and have no payloads: the partition is another's."""
        self.in_all.count -= len(self.windows)
        self.in_all = HeldInAll(len(self.windows))
        self.payloads.clear()

    def take(self, record: Record, situation: Situation, cancellations: Cancellations) -> None:
        """Add a record of the hold: a request, or the tombstone of one."""
        self.next_offset, self.leader_epoch = record.offset + 1, record.leader_epoch
        key = record.key or record.offset
        self.unreadable.pop(key, None)
        if record.value is None and record.unreadable is None:
            self.drop((record.key or b"").decode("utf-8", "replace"))
            return
        try:
            self._add(record, situation, cancellations)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            self.unreadable[key] = (record, error)

    def _add(self, record: Record, situation: Situation, cancellations: Cancellations) -> None:
        record.check_readable()
        profile = h.read_profile(record.headers)
        held_at = held_at_of(record)
        share_common(profile)
        profile = self._bound(profile, situation)
        group = intern(group_in(profile, situation.options, situation.policy))
        before = len(self.windows)
        self.windows.add(Member(profile, group, held_at, record.offset))
        self.in_all.count += len(self.windows) - before
        self.payloads.add(profile.id, record)
        if cancellations.find(profile.id) is not None:
            self.cancelled.add(profile.id)

    def _bound(self, profile: Profile, situation: Situation) -> Profile:
        found = bind(profile, situation.policy)
        if found.pools == ():
            self.outside.add(found.id)
        return found

    def is_read(self, start: int, progress: Progress | None, arrivals: Arrivals) -> None:
        """End a takeover: the log was read from ``start`` to its end.

        Records that progress has passed were set aside before. What is held says how soon others
        come to a process that has seen nothing of its group.
        """
        self.next_offset = max(self.next_offset, start)
        if progress is not None:
            if progress.next_offset > self.next_offset:
                # Compaction has taken the last records that it tells of.
                self.next_offset, self.leader_epoch = progress.next_offset, progress.leader_epoch
            self.unreadable = {
                key: (record, error)
                for key, (record, error) in self.unreadable.items()
                if record.offset >= progress.next_offset
            }
        for members in self.windows.groups():
            group = next(iter(members)).group
            arrivals.recall(group, (member.held_at for member in members))

    def drop(self, request_id: str) -> None:
        """Remove a request from the hold."""
        if self.windows.remove(request_id) is not None:
            self.in_all.count -= 1
        self.payloads.remove(request_id)
        self.cancelled.discard(request_id)
        self.outside.discard(request_id)

    def wants_commit(self, now: float) -> bool:
        """Return whether the progress should advance without a release."""
        moved = self.next_offset > self.committed_offset
        return moved and now - self.committed_at >= COMMIT_EVERY_S

    def lowest(self, now: float) -> int:
        """Return an offset below which nothing is held; a successor can start there."""
        if now >= self.look_again_at:
            offsets = (member.offset for member in self.windows.members())
            self.held_from = min(offsets, default=self.next_offset)
            self.look_again_at = now + max(OLDEST_EVERY_S, len(self.windows) / OLDEST_OF_PER_S)
        return self.held_from

    def regroup(self, situation: Situation) -> None:
        """Put held requests into windows of another policy and fleet, all due for inspection.

        Its groups, limits, shares and bounds may differ. The promise that a request got when it was
        routed stays: its profile is in the log.
        """
        windows = windows_of(situation.policy)
        for member in self.windows.members():
            profile = self._bound(member.profile, situation)
            group = group_in(profile, situation.options, situation.policy)
            if profile is member.profile and group == member.group:
                windows.add(member)
            else:
                windows.add(replace(member, profile=profile, group=intern(group)))
        self.windows = windows


def held_at_of(record: Record) -> float:
    """Return since when a record has been held, epoch seconds.

    Raises:
        BadRecordError: the header is missing, or no time.
    """
    held_at = h.read_time(record.headers, h.HELD_AT)
    if held_at is None:
        raise BadRecordError("decode", "bad_header", f"header {h.HELD_AT}: it is no time")
    return held_at
