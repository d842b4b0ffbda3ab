"""Alterations of a trail show, with the right words: on the topics and in an archive."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from audit_cases import Archived, Trail, make_trail
from memory_log import MemoryLog
from stream_cases import START, make_settings
from tampers import CHAIN, FIRST_KEY, TAMPERS, delete_tail

from shunter.audit.archive_trail import verify_archive
from shunter.audit.findings import Findings
from shunter.audit.terms import topic_terms
from shunter.audit.topic import verify_topic
from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from topics.signing.signed_root import key_id


def assert_found(findings: Findings, expected: dict[str, str]) -> None:
    for kind, words in expected.items():
        told = [p.message for p in findings.problems if p.kind == kind]
        assert any(words in message for message in told), (kind, words, findings.problems)


async def test_a_trail_that_nobody_touched_is_good(tmp_path: Path) -> None:
    trail = await make_trail()
    findings = await trail.verified()
    assert findings.is_good, findings.problems
    assert (findings.records, findings.roots, findings.notes) == (16, 9, [])
    archived = Archived(tmp_path, trail)
    await archived.fill()
    again = verify_archive(archived.archive)
    assert again.is_good, again.problems
    assert (again.records, again.heads) == (16, findings.heads)
    archived.tamper(lambda _trail: None)
    assert verify_archive(archived.archive).is_good


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
async def test_it_shows_on_the_topics(tamper: Callable[[Trail], None]) -> None:
    trail = await make_trail()
    tamper(trail)
    assert_found(await trail.verified(), TAMPERS[tamper])


@pytest.mark.kafka
@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
async def test_it_shows_on_a_real_kafka(
    tamper: Callable[[Trail], None], kafka: str, prefix: str
) -> None:
    trail = await make_trail()
    tamper(trail)
    catalogue = trail.publish(kafka, prefix)
    log = KafkaLog(make_settings(bootstrap_servers=kafka))
    try:
        found = await verify_topic(log, catalogue)
    finally:
        await log.leave()
    assert_found(found, TAMPERS[tamper])


@pytest.mark.kafka
async def test_nothing_shows_on_a_real_kafka_where_nobody_touched_it(
    kafka: str, prefix: str
) -> None:
    trail = await make_trail()
    log = KafkaLog(make_settings(bootstrap_servers=kafka))
    try:
        found = await verify_topic(log, trail.publish(kafka, prefix))
    finally:
        await log.leave()
    assert found.is_good, found.problems
    assert (found.records, found.roots, found.notes) == (16, 9, [])


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
async def test_it_shows_in_an_archive(tamper: Callable[[Trail], None], tmp_path: Path) -> None:
    archived = Archived(tmp_path, await make_trail())
    await archived.fill()
    archived.tamper(tamper)
    assert_found(verify_archive(archived.archive), TAMPERS[tamper])


async def test_what_retention_has_taken_is_a_note() -> None:
    trail = await make_trail()
    cluster = trail.cluster()
    for number in range(4):
        home = Partition(trail.catalogue.evidence, number)
        if cluster.logs[home].end > 2:
            cluster.trim(home, 2)
    later = topic_terms(START + 31 * 86_400)
    findings = await verify_topic(MemoryLog(cluster), trail.catalogue, terms=later)
    # Nobody has seen to the requests since.
    assert set(findings.counts) == {"unended"}, findings.problems
    assert any("are not kept here any more" in note for note in findings.notes)
    late = START + 31 * 86_400
    for terms in (
        topic_terms(START + 29 * 86_400),
        topic_terms(late, 60),
        # Kafka keeps longer than declared: it was not Kafka that took it.
        topic_terms(late, 30, settings_days=60),
    ):
        findings = await verify_topic(MemoryLog(cluster), trail.catalogue, terms=terms)
        assert findings.counts["missing"]


async def test_who_rewrites_everything_is_told_by_the_heads_that_an_auditor_kept() -> None:
    trail = await make_trail()
    kept = {chain: (head, "last month") for chain, head in (await trail.verified()).heads.items()}
    assert (await trail.verified(witnessed=kept)).is_good
    delete_tail(trail)
    trail.keys = [record for record in trail.keys if not (record.key or b"").startswith(b"heads")]
    assert (await trail.verified()).is_good
    assert_found(
        await trail.verified(witnessed=kept),
        {"truncated": "it ends with #6, but last month names #8"},
    )
    chain, (head, told) = kept.popitem()
    other = {chain: (replace(head, sequence=4), told)}
    assert_found(
        await trail.verified(witnessed=other),
        {"fork": f"{CHAIN}#4 is not the root that last month names"},
    )


def test_a_key_is_named_by_its_digest() -> None:
    assert FIRST_KEY.id == key_id(FIRST_KEY.public)
