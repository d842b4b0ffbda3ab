"""Whatever is done to a trail shows, with the right words: on the topics and in an archive."""

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from audit_cases import Archived, Trail, changed, make_trail, resigned
from memory_log import MemoryLog
from stream_cases import START, make_key, make_settings

from shunter.audit.archived import verify_archive
from shunter.audit.findings import Findings
from shunter.audit.topic import verify_topic
from streams.kafka import KafkaLog
from streams.log import Partition, Record
from topics import KeyEntry, Revocation, Root, decode, encode
from topics.merkle import leaf_hash
from topics.roots import key_id, leaves_of

CHAIN = "yard.router-yard.requests-0"
FIRST_KEY, SECOND_KEY = make_key(1), make_key(2)


def index_of(trail: Trail, sequence: int) -> int:
    roots = [decode(Root, record.value or b"") for record in trail.roots]
    return next(i for i, r in enumerate(roots) if r.statement.sequence == sequence)


def root_at(trail: Trail, sequence: int) -> Root:
    return decode(Root, trail.roots[index_of(trail, sequence)].value or b"")


def put_root(trail: Trail, sequence: int, root: Root) -> None:
    at = index_of(trail, sequence)
    trail.roots[at] = trail.roots[at]._replace(value=encode(root))


def records_under(trail: Trail, sequence: int) -> list[Record]:
    leaves = set(leaves_of(root_at(trail, sequence)))
    return [r for r in trail.evidence if leaf_hash(r.value or b"") in leaves]


def flip_evidence(trail: Trail) -> None:
    trail.evidence[3] = changed(trail.evidence[3], b'"tenant":"t', b'"tenant":"u')


def flip_root(trail: Trail) -> None:
    trail.roots[2] = changed(trail.roots[2], b'"count":2', b'"count":3')


def flip_leaf(trail: Trail) -> None:
    root = root_at(trail, 2)
    raw = bytearray(base64.b64decode(root.leaves))
    raw[5] ^= 1
    put_root(trail, 2, replace(root, leaves=base64.b64encode(raw).decode()))


def drop_record(trail: Trail) -> None:
    del trail.evidence[4]


def drop_batch(trail: Trail) -> None:
    gone = records_under(trail, 2)
    trail.evidence = [r for r in trail.evidence if r not in gone]
    del trail.roots[index_of(trail, 2)]


def drop_root(trail: Trail) -> None:
    del trail.roots[index_of(trail, 2)]


def swap(trail: Trail) -> None:
    first, second = (
        [i for i, r in enumerate(trail.evidence) if r.partition == trail.evidence[0].partition]
    )[:2]
    evidence = trail.evidence
    evidence[first], evidence[second] = evidence[second], evidence[first]


def replay(trail: Trail) -> None:
    trail.evidence.append(trail.evidence[0])


def replay_root(trail: Trail) -> None:
    trail.roots.append(trail.roots[0])


def insert(trail: Trail) -> None:
    trail.evidence.insert(2, changed(trail.evidence[1], b'"at":', b'"at":1'))


def move(trail: Trail) -> None:
    trail.evidence[1] = trail.evidence[1]._replace(key=b"r-other")


def fork(trail: Trail) -> None:
    """The holder of the key signs another transaction in the place of one."""
    other = resigned(root_at(trail, 3), FIRST_KEY, writer="router/a", at=START + 0.5)
    at = index_of(trail, 3)
    trail.roots.insert(at + 1, trail.roots[at]._replace(value=encode(other)))


def rewrite_history(trail: Trail) -> None:
    """The holder of the key drops a transaction and numbers the next one like it."""
    gone = records_under(trail, 2)
    trail.evidence = [r for r in trail.evidence if r not in gone]
    third = root_at(trail, 3)
    put_root(trail, 3, resigned(third, FIRST_KEY, sequence=2))
    del trail.roots[index_of(trail, 2)]


def forge(trail: Trail) -> None:
    stranger = make_key(66)
    put_root(trail, 2, resigned(root_at(trail, 2), stranger, key=stranger.id))


def forge_under_another_name(trail: Trail) -> None:
    put_root(trail, 2, resigned(root_at(trail, 2), make_key(66)))


def sign_for_another(trail: Trail) -> None:
    put_root(trail, 2, resigned(root_at(trail, 2), FIRST_KEY, writer="worker/b"))


def relink(trail: Trail) -> None:
    put_root(trail, 2, resigned(root_at(trail, 2), FIRST_KEY, previous="00" * 32))


def back_date(trail: Trail) -> None:
    put_root(trail, 8, resigned(root_at(trail, 8), SECOND_KEY, at=START + 0.2))


def back_date_within(trail: Trail) -> None:
    """To a time at which the key was valid, but after which its chain had gone on."""
    for sequence, at in ((7, START + 200.0), (8, START + 100.0)):
        put_root(trail, sequence, resigned(root_at(trail, sequence), SECOND_KEY, at=at))


def date_by_a_clock_of_its_own(trail: Trail) -> None:
    put_root(trail, 8, resigned(root_at(trail, 8), SECOND_KEY, at=START + 86400.0))


def delete_tail(trail: Trail) -> None:
    for sequence in (8, 7):
        gone = records_under(trail, sequence)
        trail.evidence = [r for r in trail.evidence if r not in gone]
        del trail.roots[index_of(trail, sequence)]
    # The progress is rolled back too; the heartbeat was published.
    trail.progress = trail.progress[:-2]


def delete_all(trail: Trail) -> None:
    trail.evidence, trail.roots, trail.progress = [], [], []


def revoke(trail: Trail) -> None:
    entry = KeyEntry(revocation=Revocation(SECOND_KEY.id, START + 0.5, "a disk was stolen"))
    name = f"revoked/{SECOND_KEY.id}".encode()
    trail.keys.append(trail.keys[0]._replace(key=name, value=encode(entry)))


def hide_key(trail: Trail) -> None:
    trail.keys = [r for r in trail.keys if SECOND_KEY.id.encode() not in (r.key or b"")]


TAMPERS: dict[Callable[[Trail], None], dict[str, str]] = {
    flip_evidence: {"altered": "altered, or forged", "missing": "record 2 of 2 under"},
    flip_root: {"forged": f"{CHAIN}#2: the signature is wrong"},
    flip_leaf: {"broken_root": "its 2 leaves are not the 2 signed"},
    drop_record: {"missing": "it was deleted, or altered"},
    drop_batch: {"gap": f"1 transactions of {CHAIN} are missing: #2 to #2"},
    drop_root: {"gap": "#2 to #2", "altered": "no signed root is over it"},
    swap: {"reordered": "stands behind"},
    replay: {"replayed": "stands before it already"},
    replay_root: {"replayed": f"{CHAIN}#0 stands at"},
    insert: {"altered": "altered, or forged"},
    move: {"wrong_key": "its key is b'r-other'"},
    fork: {"fork": f"{CHAIN}#3 is another root than that at"},
    rewrite_history: {"gap": "#3 to #3", "broken_link": "#2 names another root before it"},
    forge: {"unknown_key": f"key {make_key(66).id} is not among the published keys"},
    forge_under_another_name: {"forged": "the signature is wrong"},
    sign_for_another: {"forged": "belongs to router/a, not to worker/b"},
    relink: {"broken_link": f"{CHAIN}#2 names another root before it than is there"},
    back_date: {"outside_validity": "is valid from"},
    back_date_within: {"back_dated": "before its predecessor's"},
    date_by_a_clock_of_its_own: {"back_dated": "but was written"},
    delete_tail: {"truncated": "it ends with #6, but the heartbeat of router/a"},
    delete_all: {"truncated": "no root of it is left, but the heartbeat of router/a"},
    revoke: {"revoked_key": "was revoked at 2027-01-15 08:00:00 UTC: a disk was stolen"},
    hide_key: {"unknown_key": f"key {SECOND_KEY.id} is not among the published keys"},
}


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
    findings = await verify_topic(MemoryLog(cluster), trail.catalogue)
    assert findings.is_good, findings.problems
    assert any("are not kept here any more" in note for note in findings.notes)


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
