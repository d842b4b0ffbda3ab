"""Held payloads: in memory up to a limit, read again from the log beyond it."""

from collections.abc import Sequence
from dataclasses import dataclass

from streams.engine.log import Log, LogError, Partition, Record
from streams.engine.retries import until_passed

# An unkept record up to this size counts as this large: remembering its size would take 72 bytes of
# each held request. A thousand of them fit into one release.
SMALL_BYTES = 16 * 1024


@dataclass(slots=True)
class Room:
    """Payload bytes, headers included, that one process may keep, over all partitions."""

    bytes_max: int
    bytes_used: int = 0


class Payloads:
    """The records behind the held requests of one partition."""

    def __init__(self, partition: Partition, room: Room) -> None:
        self._partition = partition
        self._room = room
        self._records: dict[str, Record] = {}
        self._left: dict[str, int] = {}
        """The sizes of records left in the log, except small ones."""

    def add(self, request_id: str, record: Record) -> None:
        """Keep a record if there is room; otherwise ``load`` reads it again."""
        if request_id in self._records or request_id in self._left:
            self.remove(request_id)
        size = record.size_bytes
        if self._room.bytes_used + size <= self._room.bytes_max:
            self._keep(request_id, record, size)
        elif size > SMALL_BYTES:
            self._left[request_id] = size

    def remove(self, request_id: str) -> None:
        """Drop a record."""
        self._left.pop(request_id, None)
        record = self._records.pop(request_id, None)
        if record is not None:
            self._room.bytes_used -= record.size_bytes

    def clear(self) -> None:
        """Drop all records."""
        self._left.clear()
        for request_id in list(self._records):
            self.remove(request_id)

    def size(self, request_id: str) -> int:
        """Return the bytes of a held record, headers included; an upper limit for a small one."""
        record = self._records.get(request_id)
        return self._left.get(request_id, SMALL_BYTES) if record is None else record.size_bytes

    async def load(self, log: Log, wanted: Sequence[tuple[str, int]]) -> None:
        """Make the records of these (request id, offset) available; they may exceed the limit.

        Raises:
            LogError: the log has lost a held record.
        """
        missing = {offset: name for name, offset in wanted if name not in self._records}
        if not missing:
            return
        found = await until_passed(
            log, f"reading {self._partition} again", lambda: log.fetch(self._partition, missing)
        )
        for offset, record in found.items():
            self._left.pop(missing[offset], None)
            self._keep(missing[offset], record, record.size_bytes)
        lost = [name for name in missing.values() if name not in self._records]
        if lost:
            raise LogError(f"{self._partition} has lost the held request {lost[0]!r}")

    def record(self, request_id: str) -> Record:
        """Return a record that ``add`` kept or ``load`` fetched. Raises KeyError."""
        return self._records[request_id]

    def _keep(self, request_id: str, record: Record, size: int) -> None:
        self._records[request_id] = record
        self._room.bytes_used += size
