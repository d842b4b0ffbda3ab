"""Record batches, read so that no batch can stop a partition.

aiokafka fails on anything its parser doesn't expect, at the same place every time: a codec that is
not installed, a header name that isn't UTF-8, bytes that don't decompress. It also unpacks a batch
whole, however large it becomes: 98 KB of gzip may hold 96 MiB. One record of a client could so end
each process that reads the partition, one after the other.

``read_every_batch`` installs the parser of this module in the client. A batch is unpacked within a
limit. An unreadable part comes as one record without key and value at the batch's last offset,
which says why (``Record.unreadable``); records before and after it come as they are. The module is
held to aiokafka 0.14 by tests/unit/streams/test_record_batches.py.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint_py

from streams.engine.log import Partition, Record
from streams.kafka.compression import UnpackError, unpack
from topics import BadRecordError
from topics.bounded_dict import BoundedDict

# The header of a batch, format v2: base offset, length, leader epoch, magic, CRC, attributes, last
# offset delta, first and last timestamp, producer id and epoch, base sequence, record count.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_AT, _MAGIC_AT, _ATTRIBUTES_AT = 8, 16, 21
_LEADING_BYTES = 12  # base offset and length
_CODEC_MASK = 0x07
_CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
# Batches whose checksum was wrong once are fetched again; this many are remembered.
_SUSPECTS_MAX = 1000

_bytes_max: int = 32 * 1024 * 1024
_suspects: BoundedDict[bytes, None] = BoundedDict(_SUSPECTS_MAX)


def read_every_batch(bytes_max: int) -> None:
    """Make each consumer of this process read batches by this module.

    Args:
        bytes_max: most bytes that a compressed batch may unpack to, and about the most that a poll
            has of a partition.
    """
    global _bytes_max  # noqa: PLW0603 - as much the process's own as the client that it is put into
    _bytes_max = bytes_max
    fetcher.MemoryRecords = RecordBatches
    fetcher.PartitionRecords = _PartitionRecords
    fetcher.FetchResult.getall = _handed_out


def records_of(partition: Partition, records: Sequence[Any]) -> list[Record]:
    """Convert the records that a consumer returned."""
    return [_record(partition, r) for r in records]


def seek_back(consumer: AIOKafkaConsumer, positions: Mapping[Partition, int]) -> None:
    """Seek to the end of the last records, after a batch whose checksum was wrong.

    The client has lost the records that it had read before it in the same poll.
    """
    for topic_partition in consumer.assignment():
        position = positions.get(Partition(*topic_partition))
        if position is not None:
            consumer.seek(topic_partition, position)


def _handed_out(fetched: Any, max_records: int | None = None) -> list[Any]:
    """Return the next records of a partition's fetch, in place of ``FetchResult.getall``.

    The library counts records alone. A fetch of 1 MB may have hundreds of batches, of each of which
    every record may unpack to the limit of a batch: a poll had gigabytes, and ended the process.
    """
    found: list[Any] = []
    if not fetched.check_assignment(fetched._topic_partition) or not fetched.has_more():  # noqa: SLF001 - as the method that it stands for
        return found
    left_bytes = _bytes_max
    for record in fetched._partition_records:  # noqa: SLF001 - likewise
        found.append(record)
        left_bytes -= _size_bytes(record)
        if len(found) == max_records or left_bytes <= 0:
            fetched._update_position()  # noqa: SLF001 - likewise
            return found
    fetched._update_position()  # noqa: SLF001 - likewise
    fetched._partition_records = None  # noqa: SLF001 - likewise
    return found


def _size_bytes(record: Any) -> int:
    size = len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        size += len(name) + (len(value) if isinstance(value, bytes) else 0)
    return size


def _record(partition: Partition, r: Any) -> Record:
    headers, unreadable = r.headers, None
    if headers and type(headers[-1][1]) is BadRecordError:
        headers, unreadable = headers[:-1], headers[-1][1]
    return Record(
        partition, r.offset, r.key, r.value, headers, r.timestamp, None, unreadable, r.leader_epoch
    )


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Records of a partition in aiokafka's form, each with its batch's leader epoch."""

    _records: "RecordBatches"

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        found = super()._consumer_record(tp, record)
        found.leader_epoch = self._records.leader_epoch
        return found


class MisplacedError(Exception):
    """A record claims an offset that is impossible in its batch."""


class RecordBatches:
    """The fetched batches of a partition, one by one, as aiokafka's ``MemoryRecords``."""

    leader_epoch: int | None = None
    """That of the batch returned last."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def size_in_bytes(self) -> int:
        """Return the length of the fetched data."""
        return len(self._data)

    def has_next(self) -> bool:
        """Return whether another batch is there; a fetch may end within one."""
        return self._end() is not None

    def next_batch(self) -> "FetchedBatch | None":
        """Return the next batch, None at the end."""
        end = self._end()
        if end is None:
            return None
        raw, self._at = self._data[self._at : end], end
        batch = FetchedBatch(raw)
        self.leader_epoch = batch.leader_epoch
        return batch

    def _end(self) -> int | None:
        if self._at + _LEADING_BYTES > len(self._data):
            return None
        (length,) = struct.unpack_from(">i", self._data, self._at + _LENGTH_AT)
        end: int = self._at + _LEADING_BYTES + max(0, length)
        return end if end <= len(self._data) else None


class FetchedBatch:
    """One batch, as the client's fetcher reads it: its header, then its records in order."""

    is_control_batch = False
    is_transactional = False
    producer_id: int | None = None
    leader_epoch: int | None = None

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self._parsed: Any = None
        self._next: Iterator[Any] | None = None
        (self.base_offset,) = struct.unpack_from(">q", raw)
        self.next_offset = self.base_offset + 1
        self._timestamp = -1
        self._codec = 0
        self._count = 1
        self._error: BadRecordError | None = None
        try:
            self._parse_header()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is passed
            self._error = self._unreadable("corrupt_batch", f"is no record batch ({_named(error)})")

    def _parse_header(self) -> None:
        raw = self._raw
        magic = raw[_MAGIC_AT]
        if magic < 2:
            self._parsed = LegacyRecordBatch(raw, magic)
            self.next_offset = self._parsed.next_offset
            if self._parsed.compression_type:
                # Its size is unknown beforehand, and no recent client sends it.
                self._error = self._unreadable(
                    "old_format", f"has record format v{magic}, compressed; send format v2"
                )
            return
        header = _HEADER.unpack_from(raw)
        self.leader_epoch = header[2] if header[2] >= 0 else None
        self._codec = header[5] & _CODEC_MASK
        self._timestamp = header[8]
        self._count = header[12]
        self._parsed = batch = DefaultRecordBatch(raw)
        self.next_offset = batch.next_offset
        self.is_control_batch = batch.is_control_batch
        self.is_transactional = batch.is_transactional
        self.producer_id = batch.producer_id

    def validate_crc(self) -> bool:
        """Return whether the checksum is right, or was wrong in an earlier fetch too.

        Damage by the network is gone when the batch is fetched again. Damage on the disk is not,
        and is let through.
        """
        if self._parsed is None or self._parsed.validate_crc():
            return True
        suspect = bytes(self._raw[: _HEADER.size])
        if suspect not in _suspects:
            _suspects.put(suspect, None)
            return False
        # None of it can be trusted, not even its attributes.
        self.is_control_batch = self.is_transactional = False
        self.producer_id = None
        self._error = self._unreadable("corrupt_batch", "has a wrong checksum")
        return True

    def __iter__(self) -> Iterator[Any]:
        """Yield the records; in place of unreadable ones, one that says why."""
        if self._error is not None:
            yield self._placeholder(self._error)
            return
        read, next_offset, unpacked = 0, self.base_offset, None
        try:
            batch = self._parsed
            if self._codec:
                unpacked = self._unpacked()
                batch = DefaultRecordBatch(unpacked)
            for record in self._in_place(batch, read, next_offset):
                yield record
                read += 1
                next_offset = record.offset + 1
        except UnpackError as error:
            yield self._placeholder(self._unreadable("undecodable_batch", str(error)))
        except MisplacedError as error:
            yield self._placeholder(self._unreadable("corrupt_batch", str(error)))
        except Exception:  # noqa: BLE001 - whatever the parser stumbles on
            yield from self._read_leniently(unpacked or self._raw, read, next_offset)

    def __next__(self) -> Any:
        """Return the next record: the one of a control batch, for the fetcher."""
        if self._next is None:
            self._next = iter(self._parsed)
        return next(self._next)

    def _unpacked(self) -> bytes:
        """Return the decompressed batch.

        Raises:
            UnpackError: it unpacks to more than the limit, or not at all.
        """
        name = _CODECS.get(self._codec)
        if name is None:
            raise UnpackError(f"has the codec {self._codec}, which is none of Kafka's")
        records = unpack(name, self._raw[_HEADER.size :], _bytes_max)
        header = bytearray(self._raw[: _HEADER.size])
        length = len(header) + len(records) - _LEADING_BYTES
        struct.pack_into(">i", header, _LENGTH_AT, length)
        (attributes,) = struct.unpack_from(">h", header, _ATTRIBUTES_AT)
        struct.pack_into(">h", header, _ATTRIBUTES_AT, attributes & ~_CODEC_MASK)
        return b"".join((header, records))

    def _read_leniently(
        self, data: bytes | memoryview, read: int, next_offset: int
    ) -> Iterator[Any]:
        """Yield the records after the first ``read``, with header names of any bytes."""
        try:
            for record in self._in_place(_LenientBatch(data, read), read, next_offset):
                yield _with_readable_names(record)
                next_offset = record.offset + 1
        except MisplacedError as error:
            yield self._placeholder(self._unreadable("corrupt_batch", str(error)))
        except Exception as error:  # noqa: BLE001 - as above
            if next_offset < self.next_offset:
                what = f"can't be read from offset {next_offset} on ({_named(error)})"
                yield self._placeholder(self._unreadable("corrupt_batch", what))

    def _in_place(self, records: Iterable[Any], read: int, next_offset: int) -> Iterator[Any]:
        """Yield the records after the first ``read``, while their offsets are possible.

        Kafka checks offsets only in compressed batches. A record that claimed a far one would move
        its reader's progress there, past all records between; one that claimed an earlier one would
        never be seen.

        Raises:
            MisplacedError: an offset was taken before, or leaves too few to those that follow.
        """
        for at, record in enumerate(records, read):
            if not next_offset <= record.offset <= self.next_offset - self._count + at:
                raise MisplacedError(
                    f"has a record that claims offset {record.offset}, where {next_offset} is next"
                )
            yield record
            next_offset = record.offset + 1

    def _unreadable(self, reason: str, what: str) -> BadRecordError:
        last = self.next_offset - 1
        span = f"{self.base_offset} to {last}" if last > self.base_offset else f"{last}"
        return BadRecordError("decode", reason, f"the record batch at offset {span} {what}")

    def _placeholder(self, error: BadRecordError) -> "_Placeholder":
        return _Placeholder(self.next_offset - 1, self._timestamp, error)


class _Placeholder:
    """Stands for the unreadable records of a batch."""

    timestamp_type: Final = 0
    key: Final = None
    value: Final = None
    checksum: Final = None

    def __init__(self, offset: int, timestamp: int, error: BadRecordError) -> None:
        self.offset = offset
        self.timestamp = timestamp
        # An object that no bytes from outside can forge.
        self.headers = (("", error),)


class _Named:
    """A record with some header names shown with escapes, and marked so."""

    checksum: Final = None

    def __init__(self, record: Any, headers: Sequence[tuple[str, Any]]) -> None:
        self.offset = record.offset
        self.timestamp = record.timestamp
        self.timestamp_type = record.timestamp_type
        self.key = record.key
        self.value = record.value
        self.headers = headers


class _Lenient(bytearray):
    """Bytes whose slices decode to text whatever they hold."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _Lenient(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        try:
            return super().decode(encoding, errors)
        except UnicodeDecodeError:
            return _Escaped(super().decode(encoding, "backslashreplace"))


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """An uncompressed batch after its first ``read`` records, with header names of any bytes."""

    _buffer: bytearray
    _pos: int

    def __init__(self, data: bytes | memoryview, read: int) -> None:
        super().__init__(data)
        for _ in range(read):
            length, self._pos = decode_varint_py(self._buffer, self._pos)
            self._pos += length
        self._buffer = _Lenient(self._buffer)
        self._next_record_index = read

    def _read_msg(self) -> Any:
        # The faster one in C checks no bounds: a length that leads out of the batch ends the
        # process with a segmentation fault.
        return super()._read_msg(decode_varint_py)


class _Escaped(str):
    """A header name that differs from the one sent: it has escapes for bytes that are not UTF-8."""

    __slots__ = ()


def _with_readable_names(record: Any) -> Any:
    if not any(type(name) is _Escaped for name, _ in record.headers):
        return record
    message = "the name of a header is not UTF-8; send header names as UTF-8 text"
    error = BadRecordError("decode", "header_not_utf8", message)
    headers = [(str(name), value) for name, value in record.headers]
    return _Named(record, (*headers, ("", error)))


def _named(error: Exception) -> str:
    # Its text may contain bytes of the payload.
    return type(error).__name__
