"""Reading progress back: where a predecessor really stood."""

from collections.abc import Collection, Mapping

from streams.log import Log, Partition
from topics import Progress, decode, progress_key

# A stage that works writes its key often, so its newest record is near the end; where it isn't
# found there is more read, and at last the whole partition.
TAIL_RECORDS = (500, 10_000)


async def read_progress(
    log: Log, topic: str, group: str, partitions: Collection[Partition]
) -> dict[Partition, Progress]:
    """Return the newest progress of a group on each partition; absent where there is none."""
    homes = {partition: Partition(topic, partition.number) for partition in partitions}
    bounds = await log.bounds({*homes.values(), *partitions})
    keys = {progress_key(group, p.topic, p.number): p for p in partitions}
    # Where nothing has ever come nothing was done, and the whole topic would be looked through.
    missing = [partition for partition in partitions if bounds[partition][1]]
    found: dict[Partition, Progress] = {}
    for records_max in (*TAIL_RECORDS, None):
        if not missing:
            break
        wanted = {homes[partition] for partition in missing}
        ends = {home: bounds[home][1] for home in wanted}
        starts = {home: bounds[home][0] for home in wanted}
        if records_max is not None:
            starts = {home: max(first, ends[home] - records_max) for home, first in starts.items()}
        # What a longer reading finds of others is the same.
        found |= await _scan(log, keys, starts, ends)
        missing = [p for p in missing if p not in found and starts[homes[p]] > bounds[homes[p]][0]]
    return found


async def _scan(
    log: Log,
    keys: Mapping[bytes, Partition],
    starts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
) -> dict[Partition, Progress]:
    found: dict[Partition, Progress] = {}
    async for records in log.read(starts, ends):
        for record in records:
            partition = keys.get(record.key or b"")
            if partition is not None and record.value is not None:
                found[partition] = decode(Progress, record.value)
    return found
