"""Records rewritten in place, in the segment files of a broker that is down."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiokafka.record.util import calc_crc32c

# Base offset, length of what follows it, leader epoch, version of the format, checksum.
_LEADING = struct.Struct(">qiibI")
_LENGTH_ENDS, _CODEC = 12, 0b111


@contextmanager
def rewritten_in_place(data_dir: Path, topic: str, mark: bytes) -> Iterator[str]:
    """Change the byte after a mark, and the batch's checksum with it; undo it at the end.

    Yields:
        where it was.

    Raises:
        LookupError: no uncompressed batch of the topic has the mark.
    """
    for path in sorted(data_dir.glob(f"**/{topic}-[0-9]*/*.log")):
        raw = path.read_bytes()
        if (changed := _changed(raw, mark)) is not None:
            path.write_bytes(changed)
            try:
                yield f"{path.parent.name}/{path.name}"
            finally:
                # The broker has written behind it since.
                path.write_bytes(raw + path.read_bytes()[len(raw) :])
            return
    raise LookupError(f"{mark!r} stands in no uncompressed batch of {topic}")


def _changed(raw: bytes, mark: bytes) -> bytes | None:
    """A segment whose last batch with the mark has another byte after it, and is sound."""
    at, found = 0, None
    while at + _LEADING.size < len(raw):
        _, length, _, _, _ = _LEADING.unpack_from(raw, at)
        end = at + _LENGTH_ENDS + length
        attributes = int.from_bytes(raw[at + _LEADING.size : at + _LEADING.size + 2], "big")
        if mark in raw[at:end] and not attributes & _CODEC:
            found = at, end
        at = end
    if found is None:
        return None
    start, end = found
    batch = bytearray(raw[start:end])
    batch[batch.index(mark) + len(mark)] ^= 1
    fields = _LEADING.unpack_from(batch)
    _LEADING.pack_into(batch, 0, *fields[:4], calc_crc32c(bytes(batch[_LEADING.size :])))
    return raw[:start] + bytes(batch) + raw[end:]
