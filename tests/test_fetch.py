"""What is read again at a release: of each piece of the log that comes, only what is wanted."""

import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Collection
from typing import Any, NamedTuple

import pytest
from stream_cases import make_settings

from streams.kafka import KafkaLog
from streams.log import Partition

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


class _Reader:
    """A consumer that answers with all records of 4 MiB, but for every tenth, which is gone."""

    def __init__(self) -> None:
        self.seeks: list[int] = []

    def seek(self, _partition: Any, offset: int) -> None:
        self.seeks.append(offset)

    async def getmany(self, partition: Any, timeout_ms: int) -> dict[Any, list[_Message]]:
        offsets = range(self.seeks[-1], self.seeks[-1] + RECORDS)
        return {partition: [_Message(o, bytes(RECORD_BYTES)) for o in offsets if o % 10]}


async def test_a_fetch_keeps_what_is_wanted_and_nothing_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = _Reader()

    @contextlib.asynccontextmanager
    async def lend(_log: KafkaLog, _partitions: Collection[Partition]) -> AsyncIterator[_Reader]:
        yield reader

    monkeypatch.setattr(KafkaLog, "_reader", lend)
    wanted = [1, 2, 20, 501, 1001, 1501, 2001]
    tracemalloc.start()
    try:
        found = await KafkaLog(make_settings()).fetch(HELD, wanted)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(found) == [1, 2, 501, 1001, 1501, 2001]
    assert all(record.offset == offset for offset, record in found.items())
    assert reader.seeks == [1, 501, 1001, 1501, 2001]
    assert most < 3 * RECORDS * RECORD_BYTES
