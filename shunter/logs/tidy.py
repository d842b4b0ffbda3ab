"""Records that compacted topics keep for ever of removed processes, keys and pools."""

from collections.abc import AsyncIterator, Iterable

from shunter.logs.reading import read_all
from streams.engine.log import Log, Partition, Record
from topics import BadRecordError, Catalogue, KeyEntry, decode, progress_key

# Tolerance of two clocks: a record is signed before the broker stamps it.
CLOCKS_S_MAX = 86_400.0


async def silent_heartbeats(log: Log, catalogue: Catalogue, before: float) -> list[bytes]:
    """Return the keys of instances that have not reported since ``before``, epoch seconds.

    One that comes back meanwhile is known again by its next heartbeat.
    """
    newest = await _newest(read_all(log, catalogue.pool_status, 1))
    return [key for key, record in newest.items() if record.timestamp_ms / 1000 < before]


async def spent_keys(log: Log, catalogue: Catalogue) -> list[bytes]:
    """Return the keys of public keys, and of their heads, that sign nothing kept here any more.

    A key is spent once the oldest root and evidence are newer than its last sign of life. A key
    that vouches for a needed one is needed too; revocations stay, and introductions of keys that
    are needed or introduce others.
    """
    oldest = [
        at
        for topic in (catalogue.evidence, catalogue.evidence_roots)
        for number in range(catalogue.partitions)
        if (at := await _oldest(log, Partition(topic, number))) is not None
    ]
    if not oldest:
        return []
    since = min(oldest) - CLOCKS_S_MAX
    newest = await _newest(read_all(log, catalogue.evidence_keys, 1))
    needed: set[str] = set()
    endorsers: dict[str, str] = {}
    for key, record in newest.items():
        kind, _, name = key.decode("utf-8", "replace").partition("/")
        if kind not in {"revoked", "introduced"} and record.timestamp_ms / 1000 >= since:
            needed.add(name)
        if kind == "key" and (endorser := _endorser(record)) is not None:
            endorsers[name] = endorser
    for name in list(needed):
        while (endorser := endorsers.get(name)) is not None and endorser not in needed:
            needed.add(endorser)
            name = endorser  # noqa: PLW2901  up the line of those that vouch
    kinds = {b"key", b"heads", b"introduced"}
    needed |= {_introducer(key, record) or "" for key, record in newest.items()}
    split = [(key, *key.partition(b"/")[::2]) for key in newest]
    return [key for key, kind, name in split if kind in kinds and name.decode() not in needed]


def progress_keys(catalogue: Catalogue, pool: str) -> Iterable[tuple[bytes, int]]:
    """Yield the keys of the progress of a pool's workers, each with its partition."""
    for topic in catalogue.pool_topics(pool):
        for number in range(catalogue.partitions):
            yield progress_key(catalogue.worker_group(pool), topic.name, number), number


async def _newest(records: AsyncIterator[Record]) -> dict[bytes, Record]:
    """Return the newest record of each key, except tombstones."""
    newest: dict[bytes, Record] = {}
    async for record in records:
        if record.value is None:
            newest.pop(record.key or b"", None)
        elif record.key is not None:
            newest[record.key] = record
    return newest


def _endorser(record: Record) -> str | None:
    try:
        published = decode(KeyEntry, record.value or b"").published
    except BadRecordError:
        return None
    return None if published is None else published.endorser


def _introducer(key: bytes, record: Record) -> str | None:
    """Return the id of a key that is introduced to introduce others, None of any other."""
    if not key.startswith(b"introduced/"):
        return None
    try:
        introduction = decode(KeyEntry, record.value or b"").introduction
    except BadRecordError:
        return None
    if introduction is None or not introduction.statement.introduces:
        return None
    return introduction.statement.key


async def _oldest(log: Log, partition: Partition) -> float | None:
    """Return the time of the first record, epoch seconds; None if there is none."""
    first, end = (await log.bounds([partition]))[partition]
    if end > first:
        async for records in log.read({partition: first}, {partition: end}):
            if records:
                return records[0].timestamp_ms / 1000
    return None
