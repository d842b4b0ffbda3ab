"""Digests of the ids of received requests, for the next owner of the partition."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from topics.wire.errors import BadRecordError

# Long enough that nobody can find an id that would pass for another's.
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class SeenIds:
    """The requests at a block of offsets of an ingest partition.

    Attributes:
        first_offset: the block's first offset.
        next_offset: the next block's first offset.
        offsets: offset of each record with an id, ascending, from ``first_offset`` on.
        digests: blake2b digests of these ids, 16 bytes each, concatenated, in base64.
        is_checked: whether each record is known to be a request.
    """

    first_offset: int
    next_offset: int
    offsets: tuple[int, ...]
    digests: str
    is_checked: bool

    @classmethod
    def of(
        cls,
        first_offset: int,
        next_offset: int,
        sightings: Sequence[tuple[int, bytes]],
        *,
        is_checked: bool,
    ) -> "SeenIds":
        """Return the block with these digests at these offsets."""
        offsets = tuple(offset - first_offset for offset, _ in sightings)
        digests = base64.b64encode(b"".join(digest for _, digest in sightings)).decode()
        return cls(first_offset, next_offset, offsets, digests, is_checked)

    def sightings(self) -> list[tuple[int, bytes]]:
        """Return each digest with its offset in the partition.

        Raises:
            BadRecordError: the numbers of digests and offsets differ, or the block has no offsets.
        """
        if self.first_offset >= self.next_offset:
            raise BadRecordError("validate", "invalid_record", "next_offset: not above the first")
        try:
            joined = base64.b64decode(self.digests, validate=True)
        except binascii.Error as error:
            raise BadRecordError("validate", "invalid_record", f"digests: {error}") from error
        if len(joined) != DIGEST_BYTES * len(self.offsets):
            raise BadRecordError(
                "validate",
                "invalid_record",
                f"digests: {len(joined)} bytes for {len(self.offsets)} offsets",
            )
        digests = [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
        return [
            (self.first_offset + offset, digest)
            for offset, digest in zip(self.offsets, digests, strict=True)
        ]
