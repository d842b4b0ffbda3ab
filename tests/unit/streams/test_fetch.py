"""Payloads read again at a release: of each piece of the log that comes, only what is wanted."""

import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Collection
from typing import Any, NamedTuple

import pytest
from stream_cases import make_settings

from streams.engine.log import LogError, Partition
from streams.kafka.log import KafkaLog

HELD = Partition("held", 0)
RECORD_BYTES = 65_536
# As many as come with one seek.
RECORDS = 64


class _Message(NamedTuple):
    offset: int
    value: bytes
    key: bytes = b"r"
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = 0
    leader_epoch: int | None = None


class _Reader:
    """A consumer that answers with all records of 4 MiB, but for every tenth, which is gone."""

    def __init__(self, silent: int = 0) -> None:
        self.seeks: list[int] = []
        self.silent = silent

    def seek(self, _partition: Any, offset: int) -> None:
        self.seeks.append(offset)

    async def position(self, _partition: Any) -> int:
        return self.seeks[-1]

    async def getmany(self, partition: Any, timeout_ms: int) -> dict[Any, list[_Message]]:
        if self.silent:
            self.silent -= 1
            return {}
        offsets = range(self.seeks[-1], self.seeks[-1] + RECORDS)
        return {partition: [_Message(o, bytes(RECORD_BYTES)) for o in offsets if o % 10]}


def log_of(reader: _Reader, monkeypatch: pytest.MonkeyPatch) -> KafkaLog:
    """Return a log of 3,000 records, read by this reader."""

    @contextlib.asynccontextmanager
    async def lend(_log: KafkaLog, _partitions: Collection[Partition]) -> AsyncIterator[_Reader]:
        yield reader

    async def bounds(
        _log: KafkaLog, partitions: Collection[Partition]
    ) -> dict[Partition, tuple[int, int]]:
        return dict.fromkeys(partitions, (0, 3000))

    monkeypatch.setattr(KafkaLog, "_reader", lend)
    monkeypatch.setattr(KafkaLog, "bounds", bounds)
    return KafkaLog(make_settings())


async def test_a_record_that_no_broker_gives_is_not_taken_for_one_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a stall of the broker makes a duplicate new, or a held request lost."""
    patient = log_of(_Reader(silent=2), monkeypatch)
    assert list(await patient.fetch(HELD, [1, 2])) == [1, 2]
    with pytest.raises(LogError, match="no broker gives it"):
        await log_of(_Reader(silent=100), monkeypatch).fetch(HELD, [1])


async def test_a_record_beyond_the_bounds_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await log_of(_Reader(silent=1), monkeypatch).fetch(HELD, [3000]) == {}


async def test_a_fetch_keeps_what_is_wanted_and_nothing_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = _Reader()
    log = log_of(reader, monkeypatch)
    wanted = [1, 2, 20, 501, 1001, 1501, 2001]
    tracemalloc.start()
    try:
        found = await log.fetch(HELD, wanted)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(found) == [1, 2, 501, 1001, 1501, 2001]
    assert all(record.offset == offset for offset, record in found.items())
    assert reader.seeks == [1, 501, 1001, 1501, 2001]
    assert most < 3 * RECORDS * RECORD_BYTES
