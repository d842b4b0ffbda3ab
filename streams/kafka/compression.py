"""Decompression of record batches, by each codec of Kafka, within a limit."""

import struct

import cramjam

# The framing of snappy's Java library; librdkafka and others send one block without it.
_XERIAL_HEADER = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
# The first guess at a batch's decompressed size, and the growth of the next one.
_UNPACKED_TIMES, _UNPACKED_BYTES_MIN, _GROWTH = 8, 64 * 1024, 8


class UnpackError(Exception):
    """The bytes of a batch are no data of its codec, or unpack to more than the limit."""


def unpack(codec: str, data: memoryview, bytes_max: int) -> bytearray:
    """Return the decompressed ``data``, without using much more memory than its size.

    Args:
        codec: one of ``gzip``, ``snappy``, ``lz4`` and ``zstd``.
        data: of one batch.
        bytes_max: the limit of the result.

    Raises:
        UnpackError: the result is larger, or it is no data of this codec.
    """
    if codec != "snappy":
        return _unpack_growing(codec, data, bytes_max)
    if bytes(data[: len(_XERIAL_HEADER)]) == _XERIAL_HEADER:
        return _unpack_blocks(data[len(_XERIAL_HEADER) :], bytes_max)
    return _unpack_block(data, bytes_max, bytes_max)


def _unpack_growing(codec: str, data: memoryview, bytes_max: int) -> bytearray:
    """Decompress into a growing buffer: the size is not stated, or can't be trusted."""
    size = min(bytes_max, max(_UNPACKED_BYTES_MIN, len(data) * _UNPACKED_TIMES))
    while True:
        out = bytearray(size)
        try:
            del out[getattr(cramjam, codec).decompress_into(data, out) :]
        except cramjam.DecompressionError as error:
            if size >= bytes_max:
                raise UnpackError(
                    f"has {codec} data that can't be unpacked within"
                    f" SHUNTER_BATCH_BYTES_MAX ({bytes_max:,} bytes): {error}"
                ) from error
            size = min(bytes_max, size * _GROWTH)
        else:
            return out


def _unpack_blocks(data: memoryview, bytes_max: int) -> bytearray:
    found, at = bytearray(), 0
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at) if at + 4 <= len(data) else (-1,)
        at += 4
        if not 0 <= size <= len(data) - at:
            raise UnpackError("has snappy blocks that end too soon")
        found += _unpack_block(data[at : at + size], bytes_max - len(found), bytes_max)
        at += size
    return found


def _unpack_block(data: memoryview, bytes_left: int, bytes_max: int) -> bytearray:
    try:
        size = cramjam.snappy.decompress_raw_len(data)
        if size <= bytes_left:
            out = bytearray(size)
            del out[cramjam.snappy.decompress_raw_into(data, out) :]
            return out
    except cramjam.DecompressionError as error:
        raise UnpackError(f"has snappy data that can't be unpacked: {error}") from error
    raise UnpackError(f"has snappy data of more than SHUNTER_BATCH_BYTES_MAX ({bytes_max:,} bytes)")
