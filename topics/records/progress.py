"""Progress: how far a stage has come on a partition, kept as data.

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

    ``head`` is the last root of the evidence that was written on the way. On the hold, nothing
    below ``held_from`` is still held. ``topic_id`` is the id of the topic, and ``leader_epoch``
    that of the last record read: what tells whether the log is still the same; None where the
    version that wrote it did not tell.
    """

    next_offset: int
    finished: tuple[int, ...] = ()
    head: ChainHead | None = None
    held_from: int | None = None
    topic_id: str | None = None
    leader_epoch: int | None = None

    def with_head(self, head: ChainHead | None) -> "Progress":
        """Return the same progress with another head."""
        return replace(self, head=head)

    def on_log(self, topic_id: str | None, leader_epoch: int | None) -> "Progress":
        """Return the same progress, of the log of this topic as it was read up to an epoch."""
        return replace(self, topic_id=topic_id, leader_epoch=leader_epoch)

    def further(self, other: "Progress | None") -> "Progress":
        """Return whichever of the two has come further."""
        return self if other is None or self.next_offset >= other.next_offset else other


_decoder = msgspec.json.Decoder(Progress)


def decode_progress(value: bytes) -> Progress:
    """Return the progress of a record. What a newer version says beside it is left aside.

    In the head too, which is strict only where it is signed.

    Raises:
        BadRecordError: it is none.
    """
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The other takes more for what is meant, and tells what is wrong.
        return decode(Progress, value)


def progress_key(group: str, topic: str, partition: int) -> bytes:
    """Return the key of a stage's progress record on the progress topic."""
    return f"{group}/{topic}/{partition}".encode()
