"""Sources of an audit trail: the topics, or an archive."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from shunter.audit.findings import Findings
from shunter.audit.keyring import Keyring
from shunter.audit.options import AuditOptions
from shunter.audit.terms import topic_terms
from shunter.audit.texts import read_salts
from shunter.audit.topic import add_key, verify_topic
from shunter.audit.topic_export import Take, TextKind, export_topics
from shunter.client.kafka import read_by_key, run
from shunter.console import UserError
from shunter.logs.reading import Kind, TrailRow, read_all, row_of
from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from topics import Catalogue, Settings
from topics.admin.provisioning import AdminError, partition_counts, retention_ms
from topics.registry import DAY_MS
from topics.settings import RETENTION_DAYS
from topics.signing.salts import digest_key


class Trail(Protocol):
    """An audit trail from any source. Each call may raise UserError."""

    def verify(self, asked: AuditOptions, tell: Callable[[int], object]) -> Findings:
        """Verify all of it, with the keys in the keyring and those published on it."""
        ...

    def each(self, kind: Kind, take: Callable[[TrailRow], object]) -> None:
        """Pass every record on, partition by partition in the order of offsets."""
        ...

    def export(self, take: Mapping[Kind | TextKind, Take]) -> None:
        """Pass every record on of each kind that is asked for, as they stood at one moment."""
        ...

    def of_request(self, request_id: str) -> list[TrailRow]:
        """Return the evidence of a request, in the order it was written."""
        ...

    def count(self) -> int | None:
        """Return the approximate number of records of evidence, if that is quick."""
        ...


class TopicTrail:
    """The trail on Kafka."""

    def __init__(self, settings: Settings) -> None:
        names = Catalogue(settings)
        topics = [names.evidence, names.evidence_roots, names.evidence_keys]
        counts = run(partition_counts(settings, topics))
        self._settings = settings.model_copy(update={"partitions": counts[names.evidence]})
        self._catalogue = Catalogue(self._settings)

    def verify(self, asked: AuditOptions, tell: Callable[[int], object]) -> Findings:
        """Verify the topics, and with their salts the results."""
        return run(self._verify(asked, tell))

    async def _verify(self, asked: AuditOptions, tell: Callable[[int], object]) -> Findings:
        days = asked.retention_days
        if days is None:
            days = RETENTION_DAYS[self._settings.retention]
        kept_days = await self._kept_days()
        terms = topic_terms(
            time.time(),
            days,
            accept_beginnings=asked.accept_beginnings,
            settings_days=kept_days or 0.0,
        )
        findings = await verify_topic(
            KafkaLog(self._settings),
            self._catalogue,
            keyring=asked.keyring,
            witnessed=asked.witnessed,
            terms=terms,
            salts=await self._salts() if asked.with_results else None,
            tell=tell,
        )
        name = self._catalogue.evidence
        if kept_days is None:
            findings.unchecked.append(
                f"whether {name} is set to keep records for longer than {days:g} days: that takes"
                " the right DescribeConfigs"
            )
        elif kept_days > days:
            longer = "for ever" if math.isinf(kept_days) else f"for {kept_days:g} days"
            told = f"longer than the {days:g} that are declared: nothing younger may be gone"
            findings.checked.append(f"{name} is set to keep records {longer}, {told}")
        return findings

    async def _kept_days(self) -> float | None:
        """Return how long evidence is kept by the topic's settings, None if they can't be read."""
        try:
            kept_ms = await retention_ms(self._settings, self._catalogue.evidence)
        except AdminError:
            return None
        return math.inf if kept_ms is None else kept_ms / DAY_MS

    async def _salts(self) -> Callable[[str], bytes | None]:
        """Return what finds the key of the digests made with a salt."""
        await partition_counts(self._settings, [self._catalogue.results])
        secret = self._settings.evidence_secret
        raw = None if secret is None else secret.get_secret_value().encode()
        salts = {salt.id: salt for salt in await read_salts(self._settings)}

        @functools.cache
        def find(salt_id: str) -> bytes | None:
            salt = salts.get(salt_id)
            return None if salt is None else digest_key(salt, raw)

        return find

    def each(self, kind: Kind, take: Callable[[TrailRow], object]) -> None:
        """Pass on a topic's records."""
        run(self._each(kind, take))

    async def _each(self, kind: Kind, take: Callable[[TrailRow], object]) -> None:
        c = self._catalogue
        topic, partitions = {
            "evidence": (c.evidence, c.partitions),
            "roots": (c.evidence_roots, c.partitions),
            "keys": (c.evidence_keys, 1),
        }[kind]
        async for record in read_all(KafkaLog(self._settings), topic, partitions):
            take(row_of(record))

    def export(self, take: Mapping[Kind | TextKind, Take]) -> None:
        """Pass the topics on, results and salts too if they are asked for."""
        run(export_topics(KafkaLog(self._settings), self._catalogue, take))

    def of_request(self, request_id: str) -> list[TrailRow]:
        """Return a request's evidence, from its one partition."""
        key = request_id.encode()
        records = run(read_by_key(self._settings, self._catalogue.evidence, key))
        return [row_of(record) for record in records]

    def count(self) -> int | None:
        """Return the count of offsets, an estimate."""
        return run(self._count())

    async def _count(self) -> int:
        c = self._catalogue
        partitions = [Partition(c.evidence, n) for n in range(c.partitions)]
        bounds = await KafkaLog(self._settings).bounds(partitions)
        return sum(end - first for first, end in bounds.values())


def open_trail(archive: str | None, settings: Settings) -> Trail:
    """Return the trail in an archive, or on the topics if no URL is given.

    Raises:
        UserError: it can't be read, or the extra ``archive`` is not installed.
    """
    if archive is None:
        return TopicTrail(settings)
    try:
        from shunter.audit.archive_trail import ArchiveTrail  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        told = f"an archive needs more: pip install 'shunter[archive]' ({error})"
        raise UserError(told) from error
    return ArchiveTrail(archive)


def read_keyring(trail: Trail) -> Keyring:
    """Return the keys of a trail, all trusted."""
    keyring = Keyring()
    trail.each("keys", lambda row: add_key(keyring, row.value, row.where))
    return keyring
