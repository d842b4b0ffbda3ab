"""Batches as other clients send them, or as nobody should: read, or passed with a reason."""

import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c, encode_varint_py
from hypothesis import given
from hypothesis import strategies as st
from raw_batches import batch as raw_batch
from raw_batches import record as raw_record

from streams.engine.log import Partition, Record
from streams.kafka import record_batches
from streams.kafka.compression import UnpackError, unpack
from streams.kafka.record_batches import RecordBatches, read_every_batch, records_of
from topics.bounded_dict import BoundedDict

HOME = Partition("t", 0)
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
HEADER_BYTES = 61
BYTES_MAX = 1024 * 1024
Headers = Sequence[tuple[str, bytes | None]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_batches, "_bytes_max", BYTES_MAX)
    monkeypatch.setattr(record_batches, "_suspects", BoundedDict(10))


class NotText(str):
    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def batch(
    *records: tuple[bytes | None, bytes | None, Headers], base: int = 0, codec: str = "none"
) -> bytes:
    """Return a batch as a client sends it and the broker keeps it, at this offset."""
    builder = _DefaultRecordBatchBuilderPy(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=10**9,
    )
    for at, (key, value, headers) in enumerate(records):
        builder.append(at, 1000 + at, key, value, list(headers))
    made = builder.build()
    struct.pack_into(">q", made, 0, base)
    return bytes(made)


def packed(codec: str, data: bytes, count: int = 1, base: int = 0) -> bytes:
    """Return a batch of so many records that has ``data`` for its compressed records."""
    made = bytearray(batch(*[(None, b"", ())] * count, base=base)[:HEADER_BYTES]) + data
    struct.pack_into(">i", made, 8, len(made) - 12)
    struct.pack_into(">h", made, 21, CODECS[codec])
    struct.pack_into(">I", made, 17, calc_crc32c(bytes(made[21:])))
    return bytes(made)


def fetched(data: bytes, offset: int = 0) -> list[Record]:
    """Return what the client's own fetcher makes of an answer, from an offset on."""
    read_every_batch(BYTES_MAX)
    where = TopicPartition(*HOME)
    batches = fetcher.MemoryRecords(data)
    found: list[Any] = []
    if batches.has_next():
        committed = fetcher.READ_COMMITTED
        found = list(
            fetcher.PartitionRecords(where, batches, [], offset, None, None, True, committed)
        )
    return records_of(HOME, found)


class Assigned:
    """A partition that is assigned and not paused, as the client's fetcher sees it."""

    active, paused, position = True, False, 0

    def state_value(self, _where: object) -> "Assigned":
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def polls(data: bytes, records_max: int) -> list[list[int]]:
    """Return the offsets of each poll of a fetch."""
    read_every_batch(BYTES_MAX)
    where, committed, assigned = TopicPartition(*HOME), fetcher.READ_COMMITTED, Assigned()
    batches = fetcher.MemoryRecords(data)
    records = fetcher.PartitionRecords(where, batches, [], 0, None, None, True, committed)
    result = fetcher.FetchResult(where, assignment=assigned, partition_records=records, backoff=0)
    found = []
    while result.has_more():
        found.append([record.offset for record in result.getall(records_max)])
        assert assigned.position == (found[-1] or found[-2])[-1] + 1
    return found


@pytest.mark.parametrize("large", ["key", "value", "header"])
def test_a_poll_has_no_more_bytes_than_a_batch_and_one_record(large: str) -> None:
    """A megabyte of gzip held 40 records of 25 MiB, and all were in one poll."""
    much = bytes(BYTES_MAX // 2)
    key, value = (much if large == name else b"" for name in ("key", "value"))
    headers: Headers = [("h", much)] if large == "header" else []
    data = b"".join(batch((key, value, headers), base=n, codec="gzip") for n in range(5))
    assert polls(data, 100) == [[0, 1], [2, 3], [4]]


def test_a_poll_has_no_more_records_than_were_asked_for() -> None:
    data = batch(*[(b"k", b"v", ())] * 5)
    assert polls(data, 2) == [[0, 1], [2, 3], [4]]
    assert polls(data, 5) == [[0, 1, 2, 3, 4], []]
    assert polls(data, 100) == [[0, 1, 2, 3, 4]]


def message_of(record: Record) -> str:
    assert record.unreadable is not None
    assert (record.key, record.value, record.headers) == (None, None, ())
    return f"{record.unreadable.reason}: {record.unreadable.message}"


@pytest.mark.parametrize("codec", CODECS)
def test_each_codec_is_read_with_nulls_wherever_kafka_has_them(codec: str) -> None:
    headers: Headers = [("a", None), ("a", b""), ("", b"x")]
    data = batch((None, b"v" * 5000, headers), (b"k", None, ()), (b"", b"", ()), codec=codec)
    whole = fetched(data + batch((b"k", b"next", ()), base=3))
    assert [(r.offset, r.key, r.value) for r in whole] == [
        (0, None, b"v" * 5000),
        (1, b"k", None),
        (2, b"", b""),
        (3, b"k", b"next"),
    ]
    assert list(whole[0].headers) == headers
    assert whole[0].size_bytes == 5001
    assert not any(record.unreadable for record in whole)
    assert [r.offset for r in fetched(data, 2)] == [2]


def test_snappy_is_read_with_and_without_the_frames_of_java() -> None:
    body = batch((b"k", b"v" * 70_000, ()))[HEADER_BYTES:]
    framed = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
    for start in range(0, len(body), 32 * 1024):
        block = bytes(cramjam.snappy.compress_raw(body[start : start + 32 * 1024]))
        framed += struct.pack(">i", len(block)) + block
    raw = bytes(cramjam.snappy.compress_raw(body))
    for data in (framed, raw):
        (record,) = fetched(packed("snappy", data))
        assert record.value == b"v" * 70_000


BOMBS = {
    "gzip": gzip.compress,
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
    "lz4": lambda data: bytes(cramjam.lz4.compress(data)),
    "zstd": lambda data: bytes(cramjam.zstd.compress(data)),
}


@pytest.mark.parametrize("codec", BOMBS)
def test_a_batch_that_unpacks_to_more_than_the_limit_is_passed(codec: str) -> None:
    bomb = packed(codec, BOMBS[codec](bytes(96 * 1024 * 1024)), count=3, base=7)
    tracemalloc.start()
    found = fetched(bomb + batch((b"k", b"next", ()), base=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.offset for r in found] == [9, 10]
    assert message_of(found[0]).startswith("undecodable_batch: the record batch at offset 7 to 9")
    assert "SHUNTER_BATCH_BYTES_MAX (1,048,576 bytes)" in message_of(found[0])
    assert found[1].value == b"next"
    # Twice the limit, and the bomb itself, which snappy packs to 4.7 MB.
    assert peak < 2 * BYTES_MAX + 3 * len(bomb)


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_data_of_its_codec_is_passed(codec: str) -> None:
    found = fetched(packed(codec, b"garbage" * 10, count=2) + batch((b"k", b"v", ()), base=2))
    assert [r.offset for r in found] == [1, 2]
    reason = "corrupt_batch" if codec == "none" else "undecodable_batch"
    assert message_of(found[0]).startswith(f"{reason}: the record batch at offset 0 to 1")


def test_a_codec_that_kafka_does_not_have_is_passed() -> None:
    made = bytearray(batch((b"k", b"v", ())))
    struct.pack_into(">h", made, 21, 6)
    struct.pack_into(">I", made, 17, calc_crc32c(bytes(made[21:])))
    assert "has the codec 6, which is none of Kafka's" in message_of(fetched(bytes(made))[0])


def test_records_before_one_that_can_not_be_read_are_kept() -> None:
    good = batch((b"a", b"1", ()), (b"b", b"2", ()), (b"c", b"3", ()))
    torn = packed("gzip", gzip.compress(good[HEADER_BYTES:-3] + b"\xff\xff\xff"), count=3)
    found = fetched(torn)
    assert [(r.offset, r.key) for r in found] == [(0, b"a"), (1, b"b"), (2, None)]
    assert "can't be read from offset 2 on" in message_of(found[2])


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_name_that_is_no_text_marks_its_own_record_alone(codec: str) -> None:
    data = batch(
        (b"a", b"1", [("x", b"v")]),
        (b"b", b"2", [(NotText("x"), b"v"), ("y", None)]),
        (b"c", b"3", ()),
        codec=codec,
    )
    before, bad, after = fetched(data)
    assert (before.unreadable, after.unreadable) == (None, None)
    assert bad.unreadable is not None
    assert bad.unreadable.reason == "header_not_utf8"
    assert (bad.key, bad.value) == (b"b", b"2")
    assert list(bad.headers) == [("\\xff\\xfe", b"v"), ("y", None)]
    assert [r.offset for r in fetched(data, 1)] == [1, 2]


def test_a_wrong_checksum_is_fetched_again_and_then_passed() -> None:
    made = bytearray(batch((b"k", b"value", ()), (b"k", b"value", ())))
    made[-3] ^= 1
    data = bytes(made) + batch((b"k", b"next", ()), base=2)
    with pytest.raises(CorruptRecordException):
        fetched(data)
    found = fetched(data)
    assert [r.offset for r in found] == [1, 2]
    assert "the record batch at offset 0 to 1 has a wrong checksum" in message_of(found[0])


def test_an_empty_batch_as_compaction_leaves_it_takes_its_offsets() -> None:
    empty = packed("none", b"", count=3)
    hollow = bytearray(empty)
    struct.pack_into(">i", hollow, 57, 0)
    struct.pack_into(">I", hollow, 17, calc_crc32c(bytes(hollow[21:])))
    assert [r.offset for r in fetched(bytes(hollow) + batch((b"k", b"v", ()), base=3))] == [3]


MISPLACED = [(9,), (2**31 - 1,), (-9,), (0, 0), (1, 1), (0, 2**40), (0, 3, 1), (1, 0, 2)]


@pytest.mark.parametrize("name", [b"x", b"\xff\xfe"])
@pytest.mark.parametrize("places", MISPLACED)
def test_a_record_that_claims_an_offset_it_can_not_have_is_passed(
    places: Sequence[int], name: bytes
) -> None:
    """Kafka does not look at the places of what is not compressed."""
    data = b"".join(raw_record(b"k", b"v", [(name, None)], at=at) for at in places)
    count = len(places)
    found = fetched(raw_batch(data, count=count) + batch((b"k", b"next", ()), base=count))
    offsets = [r.offset for r in found]
    assert offsets == sorted(set(offsets))
    assert offsets[-2:] == [count - 1, count]
    assert found[-1].value == b"next"
    told = message_of(found[-2])
    assert told.startswith("corrupt_batch: the record batch at offset 0")
    assert "has a record that claims offset" in told


def test_what_compaction_has_left_of_a_batch_may_have_gaps() -> None:
    data = raw_record(b"a", b"1", at=2) + raw_record(b"b", b"2", at=5)
    found = fetched(raw_batch(data, count=2, last=9))
    assert [(r.offset, r.key, r.unreadable) for r in found] == [(2, b"a", None), (5, b"b", None)]


def test_a_fetch_that_ends_within_a_batch_returns_the_whole_ones() -> None:
    data = batch((b"k", b"v", ())) + batch((b"k", b"v" * 100, ()), base=1)[:-1]
    assert [r.offset for r in fetched(data)] == [0]
    assert RecordBatches(data[:11]).has_next() is False


@pytest.mark.parametrize("length", [2**20, 2**31 - 1, 2**40, 2**62])
@pytest.mark.parametrize("place", ["key", "value", "header name", "header value"])
def test_a_length_beyond_the_batch_is_no_way_out_of_it(place: str, length: int) -> None:
    """The client's fast reader of lengths looks wherever it is sent, and the process dies of it."""

    def varint(number: int) -> bytes:
        written = bytearray()
        encode_varint_py(number, written.append)
        return bytes(written)

    body = b"\0\0\0"
    for each in ("key", "value"):
        body += varint(length if place == each else -1)
    body += varint(2)
    body += varint(length) if place == "header name" else varint(1) + b"x"
    body += varint(length) if place == "header value" else varint(-1)
    body += varint(1) + b"y" + varint(-1)
    data = raw_batch(varint(len(body)) + body, count=1, last=0)
    found = fetched(data + batch((b"k", b"next", ()), base=1))
    assert [r.value for r in found][-1] == b"next"
    assert found[0].unreadable is not None
    assert len(found) == 2


@given(st.binary(max_size=200), st.sampled_from(sorted(BOMBS)))
def test_any_bytes_unpack_or_are_refused(data: bytes, codec: str) -> None:
    with contextlib.suppress(UnpackError):
        assert len(unpack(codec, memoryview(data), 1000)) <= 1000


@given(st.data(), st.sampled_from(sorted(CODECS)))
def test_any_change_of_a_batch_leaves_the_next_one_readable(
    data: st.DataObject, codec: str
) -> None:
    """The header's offsets and length are the broker's own; all else may be anything."""
    made = bytearray(batch((b"a", b"1" * 300, [("x", None)]), (b"b", None, ()), codec=codec))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([*range(21, 23), *range(27, len(made))]))
        made[at] = data.draw(st.integers(0, 255))
    made[22] &= ~0x20  # a client can't write control batches
    struct.pack_into(">I", made, 17, calc_crc32c(bytes(made[21:])))
    found = fetched(bytes(made) + batch((b"k", b"next", ()), base=2))
    assert found[-1].value == b"next"
    assert all(r.offset <= 2 for r in found)
    assert sum(r.unreadable is not None for r in found) <= 2


def test_what_a_client_sends_can_not_pass_for_unreadable() -> None:
    (record,) = fetched(batch((b"k", b"v", [("shunter-unreadable", b"x"), ("", b"y")])))
    assert record.unreadable is None
