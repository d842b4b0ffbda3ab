"""Reading progress back: where a predecessor really stood."""

from collections.abc import Collection, Mapping

from streams.log import Log, Partition
from topics import Progress, decode, progress_key

# A stage that works writes its key often, so its newest record is near the end; only where it
# isn't found there is the whole partition read.
TAIL_RECORDS = 5000


async def read_progress(
    log: Log, topic: str, group: str, partitions: Collection[Partition]
) -> dict[Partition, Progress]:
    """Return the newest progress of a group on each partition; absent where there is none."""
    homes = {partition: Partition(topic, partition.number) for partition in partitions}
    bounds = await log.bounds({*homes.values(), *partitions})
    # Where nothing has ever come nothing was done, and the whole topic would be looked through.
    partitions = [partition for partition in partitions if bounds[partition][1]]
    homes = {partition: homes[partition] for partition in partitions}
    ends = {home: bounds[home][1] for home in homes.values()}
    tails = {home: max(bounds[home][0], end - TAIL_RECORDS) for home, end in ends.items()}
    keys = {progress_key(group, p.topic, p.number): p for p in partitions}
    found = await _scan(log, keys, tails, ends)
    missing = {
        homes[p]: bounds[homes[p]][0]
        for p in partitions
        if p not in found and tails[homes[p]] > bounds[homes[p]][0]
    }
    if missing:
        # What the second reading finds of others is older than the tail or the same.
        found = await _scan(log, keys, missing, {home: ends[home] for home in missing}) | found
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
