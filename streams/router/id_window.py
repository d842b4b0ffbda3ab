"""The request ids of the last records of an ingest partition, for the detection of duplicates.

Whether a record is a duplicate depends on the records before it alone, so that a new owner who
reads those back decides as its predecessor did: a request is a duplicate if one of its id stands at
most ``records_max`` offsets before it, itself a duplicate or not.

What is read back is not validated record by record, which takes three times as long as to look at
the ids alone: the first record of an id that is read back is ``unchecked``. Whether it is a request
at all is asked only when another of its id comes.

And most of it is not read back from the requests. When all of a block of offsets has been seen, its
digests are written down (``SeenIds``), in the transaction that takes the partition past it.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from hashlib import blake2b

from topics.records.seen_ids import DIGEST_BYTES, SeenIds

# The number of blocks in a window; and the fewest records of one.
BLOCKS, BLOCK_RECORDS_MIN = 50, 4


class RecentIds:
    """The ids of one partition. Ids from ``seen`` are kept for good only after ``keep``."""

    def __init__(self, records_max: int) -> None:
        self._records_max = records_max
        # No longer than the window, all of which a new owner knows: it continues with any block.
        self.block_records = min(records_max, max(BLOCK_RECORDS_MIN, records_max // BLOCKS))
        # The ids of the unfinished block, oldest first; its beginning; and the offset up to which
        # it may hold unchecked ones.
        self._sightings: list[tuple[int, bytes]] = []
        self._block_at = self._checked_from = 0
        # The last offset of each id, oldest first; and the first offset, for ids that were seen
        # more than once.
        self._last: dict[bytes, int] = {}
        self._first: dict[bytes, int] = {}
        self._new: dict[bytes, tuple[int, int]] = {}
        # For ids that were read back: the first record, and the first after it that is a request.
        self._unchecked: dict[bytes, tuple[int, int | None]] = {}

    def __len__(self) -> int:
        return len(self._last)

    def seen(self, request_id: str, offset: int) -> int | None:
        """Note a request, and return the offset of the first of its id, None if new.

        Offsets ascend from call to call.
        """
        digest = _digest(request_id)
        first = self._known(digest, offset)
        self._sightings.append((offset, digest))
        self._new.pop(digest, None)
        self._new[digest] = (offset if first is None else first, offset)
        return first

    def begin_at(self, next_offset: int) -> None:
        """Set the offset at which ``seen`` continues; records read back before it are unchecked."""
        self._block_at = next_offset // self.block_records * self.block_records
        self._checked_from = next_offset

    def read_back(self, request_id: str, offset: int, is_request: Callable[[], bool]) -> None:
        """Note a past record that bears an id. Offsets ascend from call to call.

        Args:
            request_id: its id.
            offset: its offset.
            is_request: returns whether it is a request; called only if the id came before.
        """
        digest = _digest(request_id)
        if self._recall(digest, offset, is_request) and offset >= self._block_at:
            self._sightings.append((offset, digest))

    def recall(self, sightings: Sequence[tuple[int, bytes]], *, is_checked: bool) -> None:
        """Note the ids that a predecessor had seen in a block of offsets."""
        offsets = {digest: offset for offset, digest in sightings}
        if is_checked and len(offsets) == len(sightings) and offsets.keys().isdisjoint(self._last):
            self._last |= offsets
            return
        for offset, digest in sightings:
            # A written id that had come before has been checked.
            self._recall(digest, offset, lambda: True, is_checked=is_checked)

    def finished(self, next_offset: int) -> list[SeenIds]:
        """Return the finished blocks at this offset, up to which all has been ``seen``."""
        block = self.block_records
        # Ids that have left the window are never asked for.
        self._block_at = max(self._block_at, (next_offset - self._records_max) // block * block)
        found: list[SeenIds] = []
        while self._block_at + block <= next_offset:
            first, end = self._block_at, self._block_at + block
            at, until = (bisect_left(self._sightings, (edge,)) for edge in (first, end))
            is_checked = first >= self._checked_from
            found.append(SeenIds.of(first, end, self._sightings[at:until], is_checked=is_checked))
            del self._sightings[:until]
            self._block_at = end
        return found

    def _recall(
        self,
        digest: bytes,
        offset: int,
        is_request: Callable[[], bool],
        *,
        is_checked: bool = False,
    ) -> bool:
        """Note a past sighting, unless it was none; return whether it was one."""
        last = self._last.get(digest)
        if last is None or last < offset - self._records_max:
            self._first.pop(digest, None)
            if is_checked:
                self._unchecked.pop(digest, None)
            else:
                self._unchecked[digest] = (offset, None)
        elif is_request():
            first, second = self._unchecked.get(digest, (None, None))
            if first is not None and second is None:
                self._unchecked[digest] = (first, offset)
            self._first.setdefault(digest, last)
        else:
            return False
        self._last.pop(digest, None)
        self._last[digest] = offset
        self._evict(offset + 1 - self._records_max)
        return True

    def unchecked(self, request_id: str) -> int | None:
        """Return the offset of the record to validate before ``seen`` is asked about this id."""
        if not self._unchecked:
            return None
        found = self._unchecked.get(_digest(request_id))
        return None if found is None else found[0]

    def check(self, request_id: str, *, is_request: bool) -> None:
        """Record whether the unchecked record of an id was a request."""
        digest = _digest(request_id)
        _, second = self._unchecked.pop(digest)
        if is_request:
            return
        if second is None:
            self._last.pop(digest, None)
            self._first.pop(digest, None)
        elif self._last[digest] == second:
            self._first.pop(digest, None)
        else:
            self._first[digest] = second

    def keep(self) -> None:
        """Keep the ids seen since the last call, and forget those too long ago."""
        for digest, (first, last) in self._new.items():
            self._last.pop(digest, None)
            self._last[digest] = last
            if first == last:
                self._first.pop(digest, None)
            else:
                self._first[digest] = first
        if self._new:
            newest = next(reversed(self._last.values()))
            self._evict(newest + 1 - self._records_max)
        self._new.clear()

    def _known(self, digest: bytes, offset: int) -> int | None:
        oldest = offset - self._records_max
        new = self._new.get(digest)
        if new is not None:
            first, last = new
            return first if last >= oldest else None
        last_kept = self._last.get(digest)
        if last_kept is None or last_kept < oldest:
            return None
        return self._first.get(digest, last_kept)

    def _evict(self, oldest: int) -> None:
        gone = []
        for digest, last in self._last.items():
            if last >= oldest:
                break
            gone.append(digest)
        for digest in gone:
            del self._last[digest]
            self._first.pop(digest, None)
            self._unchecked.pop(digest, None)


def _digest(request_id: str) -> bytes:
    return blake2b(request_id.encode(), digest_size=DIGEST_BYTES).digest()
