"""The newest record of a key, searched from the end of the log."""

from collections.abc import Mapping

from streams.engine.log import Log, Partition, Record

# A running process writes its keys often, so that the newest record of one is near the end. If it
# isn't found there more is read, and at last the whole partition.
TAIL_RECORDS = (500, 10_000)


async def newest(
    log: Log,
    homes: Mapping[bytes, Partition],
    bounds: Mapping[Partition, tuple[int, int]],
) -> dict[bytes, Record]:
    """Return the newest record of each key, tombstones included; absent if there is none.

    An unreadable record or batch may have any key: it counts as the newest of all keys there.

    Args:
        log: the log to read.
        homes: the partition of each key.
        bounds: first offset and end of each of these partitions.
    """
    found: dict[bytes, Record] = {}
    unreadable: dict[Partition, Record] = {}
    missing = dict(homes)
    for records_max in (*TAIL_RECORDS, None):
        if not missing:
            break
        ends = {home: bounds[home][1] for home in missing.values()}
        starts = {home: bounds[home][0] for home in ends}
        if records_max is not None:
            starts = {home: max(first, ends[home] - records_max) for home, first in starts.items()}
        async for records in log.read(starts, ends):
            # A longer read finds the same for other keys.
            for record in records:
                if record.unreadable is not None:
                    unreadable[record.partition] = record
                elif record.key is not None and homes.get(record.key) == record.partition:
                    found[record.key] = record
        missing = {
            key: home
            for key, home in missing.items()
            if key not in found and starts[home] > bounds[home][0]
        }
    for key, home in homes.items():
        spoiled = unreadable.get(home)
        if spoiled is not None and (key not in found or found[key].offset < spoiled.offset):
            found[key] = spoiled
    return found
