"""The audit trail on Kafka."""

import time
from collections.abc import Callable, Mapping

import orjson

from shunter.audit.chains import Witnessed
from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.results import Results
from shunter.audit.terms import Terms, topic_terms
from shunter.audit.verifier import Verifier
from shunter.logs.reading import place_of, read_all, settled_bounds
from streams.engine.log import Log, Partition
from topics import BadRecordError, Catalogue, ChainHead, KeyEntry, decode, decode_progress, encode


async def verify_topic(
    log: Log,
    catalogue: Catalogue,
    *,
    keyring: Keyring | None = None,
    witnessed: Witnessed | None = None,
    terms: Terms | None = None,
    salts: Callable[[str], bytes | None] | None = None,
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
        terms: what may be gone; by this machine's clock, if None.
        salts: returns the key of the digests made with a salt, None if that is gone; with it
            results are held against the evidence.
        tell: receives the number of records every few thousand.

    Raises:
        LogError: a transaction stays open.
    """
    results, terms = None, terms or topic_terms(time.time())
    if salts is not None:
        # What is read of them later and came before this has its evidence in what is read below.
        known = await _bounds(log, catalogue.results, catalogue.partitions)
        results = Results(salts, known, terms.results_since)
    bounds = await settled_bounds(log, catalogue.evidence, catalogue.partitions)
    keyring = keyring or Keyring()
    await read_keys(log, catalogue, keyring)
    heads = await progress_heads(log, catalogue)
    verifier = Verifier(keyring, witnessed, heads, terms)
    verifier.stories.results = results
    roots = [r async for r in read_all(log, catalogue.evidence_roots, catalogue.partitions)]
    # A process that has started since may have signed; its heads may be newer than the roots read.
    await read_keys(log, catalogue, keyring, with_heads=False)
    for record in roots:
        number, at = record.partition.number, record.timestamp_ms / 1000
        key = record.key or b""
        verifier.add_root(record.value, place_of(record), at, key=key, partition=number)
    verifier.end_of_roots()
    async for record in read_all(log, catalogue.evidence, catalogue.partitions):
        verifier.add(
            record.partition.number,
            place_of(record),
            record.key,
            record.value,
            is_fresh=record.offset >= bounds[record.partition][1],
        )
        if verifier.findings.records % 5000 == 0:
            tell(verifier.findings.records)
    tell(verifier.findings.records)
    verifier.findings.unchecked.append(
        "offsets and partitions of records, and Kafka's times of evidence: nobody signed them (`at`"
        " in a record is signed)"
    )
    if results is None:
        verifier.findings.unchecked.append("results: they were not asked for")
    else:
        async for record in read_all(log, catalogue.results, catalogue.partitions):
            results.add(record, place_of(record), verifier.findings)
        results.finish(verifier.findings)
    return verifier.finish({p.number: first for p, (first, _) in bounds.items()})


async def _bounds(log: Log, topic: str, partitions: int) -> Mapping[Partition, tuple[int, int]]:
    return await log.bounds([Partition(topic, n) for n in range(partitions)])


async def read_keys(
    log: Log, catalogue: Catalogue, keyring: Keyring, *, with_heads: bool = True
) -> None:
    """Read the keys topic into a keyring."""
    async for record in read_all(log, catalogue.evidence_keys, 1):
        add_key(keyring, record.value, place_of(record), key=record.key, with_heads=with_heads)


def add_key(
    keyring: Keyring,
    value: bytes | None,
    where: str,
    *,
    key: bytes | None = None,
    with_heads: bool = True,
) -> None:
    """Add a record of the keys topic; an unreadable one is set aside.

    Args:
        keyring: to add to.
        value: of the record; None deletes, and is left aside.
        where: it stands, for people.
        key: of the record; not checked if None.
        with_heads: whether heartbeats are added.
    """
    if value is None:
        return
    try:
        entry = decode(KeyEntry, value)
    except BadRecordError as error:
        keyring.refuse(where, error.message)
        return
    if key is not None and key != (entry.name or "").encode():
        keyring.refuse(where, f"its key is {key!r}, and should be {entry.name!r}")
    if not _is_as_read(entry, value):
        keyring.refuse(where, "it is not written as its signer writes it")
    elif with_heads or entry.heads is None:
        keyring.add(entry, where)


def _is_as_read(entry: KeyEntry, value: bytes) -> bool:
    """Return whether an entry's members are there as they were read, nothing left out."""
    told, read = orjson.loads(value), orjson.loads(encode(entry))
    members = {name for name in read if read[name] is not None}
    return len(members) == 1 and all(told[name].items() <= read[name].items() for name in members)


async def progress_heads(log: Log, catalogue: Catalogue) -> list[tuple[str, ChainHead, str]]:
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
    return [(chain, head, told) for chain, (head, told) in heads.items()]
