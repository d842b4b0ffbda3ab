"""Progress: a stage's position on a partition, kept as data.

The group offset alone is not enough: a broker killed between a transaction's commit and its
marker on ``__consumer_offsets`` shows the records but loses the offset (docs/decisions/0002).
"""

from dataclasses import dataclass, replace

import msgspec

from topics.signing.signed_root import ChainHead
from topics.wire.codec import decode


@dataclass(frozen=True, slots=True)
class Progress:
    """All offsets below ``next_offset`` are finished, and so are those in ``finished``.

    ``head`` is the last root of the evidence written so far. On the hold, nothing below
    ``held_from`` is still held. ``topic_id`` and the newest ``leader_epoch`` of a record read
    identify the log; they are None if an older version wrote the record. ``is_recovered`` is true
    of what a recovery wrote: it is behind what a member may have told the group, and counts all the
    same.
    """

    next_offset: int
    finished: tuple[int, ...] = ()
    head: ChainHead | None = None
    held_from: int | None = None
    topic_id: str | None = None
    leader_epoch: int | None = None
    is_recovered: bool = False

    @property
    def reach(self) -> int:
        """The offset after the last record that is done, or finished above an open one."""
        return max(self.next_offset, self.finished[-1] + 1 if self.finished else 0)

    def with_head(self, head: ChainHead | None) -> "Progress":
        """Return the same progress with another head."""
        return replace(self, head=head)

    def on_log(self, topic_id: str | None, leader_epoch: int | None) -> "Progress":
        """Return the same progress with the topic's id and the last leader epoch read."""
        return replace(self, topic_id=topic_id, leader_epoch=leader_epoch)

    def further(self, other: "Progress | None") -> "Progress":
        """Return the one of the two with the higher position."""
        return self if other is None or self.next_offset >= other.next_offset else other


_decoder = msgspec.json.Decoder(Progress)


def decode_progress(value: bytes) -> Progress:
    """Return the progress of a record. Unknown fields of a newer version are ignored.

    Those of the head too, which is strict only where it is signed.

    Raises:
        BadRecordError: the record is invalid.
    """
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The other decoder accepts more, and its errors say what is wrong.
        return decode(Progress, value)


def progress_key(group: str, topic: str, partition: int) -> bytes:
    """Return the key of a stage's progress record on the progress topic."""
    return f"{group}/{topic}/{partition}".encode()
