"""The audit trail on Kafka."""

from collections.abc import Callable, Mapping

from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.verifier import Verifier
from shunter.logs.reading import place_of, read_all, settled_bounds
from streams.engine.log import Log
from topics import BadRecordError, Catalogue, ChainHead, KeyEntry, decode, decode_progress


async def verify_topic(
    log: Log,
    catalogue: Catalogue,
    *,
    keyring: Keyring | None = None,
    witnessed: Mapping[str, tuple[ChainHead, str]] | None = None,
    tell: Callable[[int], object] = lambda _count: None,
) -> Findings:
    """Verify all evidence on the topics, of a system that may be running.

    Commits during the run must not look like gaps: heads are read before roots and roots before
    evidence, and records newer than the roots are skipped.

    Args:
        log: to read from.
        catalogue: names the topics, and their partitions.
        keyring: keys to begin with; those published on the topic are added.
        witnessed: heads that the auditor knows from before, and their sources.
        tell: receives the number of records every few thousand.

    Raises:
        LogError: a transaction stays open.
    """
    bounds = await settled_bounds(log, catalogue.evidence, catalogue.partitions)
    keyring = keyring or Keyring()
    await read_keys(log, catalogue, keyring)
    heads = await progress_heads(log, catalogue) | dict(witnessed or {})
    verifier = Verifier(keyring, heads)
    roots = [r async for r in read_all(log, catalogue.evidence_roots, catalogue.partitions)]
    # A process that has started since may have signed; its heads may be newer than the roots read.
    await read_keys(log, catalogue, keyring, with_heads=False)
    for record in roots:
        verifier.add_root(record.value, place_of(record), record.timestamp_ms / 1000)
    verifier.end_of_roots()
    kept_from, begun = None, -1
    if any(first == end > 0 for first, end in bounds.values()):
        # The start of a partition that is all gone is unknown; full retention is assumed.
        newest = max((record.timestamp_ms for record in roots), default=0)
        kept_from = (newest - catalogue.evidence_ms) / 1000
    async for record in read_all(log, catalogue.evidence, catalogue.partitions):
        first, end = bounds[record.partition]
        if first and record.partition.number != begun:
            kept_from = max(kept_from or 0.0, record.timestamp_ms / 1000)
        begun = record.partition.number
        verifier.add(
            record.partition.number,
            place_of(record),
            record.key,
            record.value,
            is_fresh=record.offset >= end,
        )
        if verifier.findings.records % 5000 == 0:
            tell(verifier.findings.records)
    tell(verifier.findings.records)
    return verifier.finish(kept_from)


async def read_keys(
    log: Log, catalogue: Catalogue, keyring: Keyring, *, with_heads: bool = True
) -> None:
    """Read the keys topic into a keyring."""
    async for record in read_all(log, catalogue.evidence_keys, 1):
        add_key(keyring, record.value, place_of(record), with_heads=with_heads)


def add_key(keyring: Keyring, value: bytes | None, where: str, *, with_heads: bool = True) -> None:
    """Add a record of the keys topic; an unreadable one is set aside."""
    if value is None:
        return
    try:
        entry = decode(KeyEntry, value)
    except BadRecordError as error:
        keyring.refused.append((where, error.message))
        return
    if with_heads or entry.heads is None:
        keyring.add(entry, where)


async def progress_heads(log: Log, catalogue: Catalogue) -> dict[str, tuple[ChainHead, str]]:
    """Return the head of each chain in the progress, which is written with each root."""
    heads: dict[str, tuple[ChainHead, str]] = {}
    async for record in read_all(log, catalogue.progress, catalogue.partitions):
        try:
            progress = decode_progress(record.value or b"")
        except BadRecordError:
            continue
        if progress.head is not None:
            # The names of groups and topics have no slash.
            chain = (record.key or b"").decode("utf-8", "replace").replace("/", "-")
            heads[chain] = (progress.head, f"the progress at {place_of(record)}")
    return heads
