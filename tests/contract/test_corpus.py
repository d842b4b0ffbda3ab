"""Records of earlier versions are read, and what a next one may add to them is left aside."""

import logging
from collections import Counter
from dataclasses import dataclass
from importlib import metadata

import pytest
from corpus_cases import PREFIX, ROOT, Corpus, versions, yard_of
from hold_cases import make_batcher
from memory_log import MemoryLog
from stream_cases import Yard, drain, make_router, make_signer
from worker_cases import ScriptedBackend, make_worker

from shunter.audit.replay import replay_steps
from shunter.audit.report import AuditReport
from shunter.audit.topic import verify_topic
from shunter.client.answers import text_of
from shunter.render.story import story
from streams.cancellation.index import CancellationFollower, Cancellations
from streams.config.fleet_follower import FleetFollower
from streams.engine.log import Outgoing, Record
from streams.engine.progress import read_progress
from streams.evidence.salt_follower import SaltFollower
from streams.live import LiveView, snapshot_of
from streams.usage_report import Endings
from topics import (
    Evidence,
    KeyEntry,
    PolicyLog,
    PoolStatus,
    Result,
    SeenIds,
    StreamPiece,
    decode,
    encode,
)
from topics.records import headers as h
from topics.records.evidence import ENDS

# 0: as it was recorded. Else as a next release might have written it, by this seed.
SEEDS = (0, 1, 2)


@dataclass
class Read:
    """A corpus, and the installation that it makes."""

    corpus: Corpus
    yard: Yard
    is_next: bool

    def records(self, topic: str) -> list[Record]:
        return self.yard.cluster.records(f"{PREFIX}.{topic}")


@pytest.fixture(params=[(version, seed) for version in versions() for seed in SEEDS], ids=str)
def read(request: pytest.FixtureRequest) -> Read:
    return read_corpus(*request.param)


def read_corpus(version: str, seed: int) -> Read:
    corpus = Corpus.read(ROOT / version)
    yard = yard_of(corpus)
    if seed:
        corpus = corpus.of_next_release(yard.catalogue, list(yard.options.by_pool), seed)
        yard = yard_of(corpus)
    return Read(corpus, yard, is_next=seed > 0)


def test_this_version_has_a_corpus() -> None:
    assert metadata.version("shunter") in versions()


def test_a_corpus_has_a_record_of_each_kind(read: Read) -> None:
    empty = {topic for topic, records in read.corpus.topics.items() if not records}
    assert all(topic.startswith(f"{PREFIX}.pool.") for topic in empty)
    assert any(not topic.startswith(f"{PREFIX}.pool.") for topic in read.corpus.topics)
    steps = {each.partition(" ")[2] for each in read.corpus.outcomes["steps"]}
    assert steps >= {*ENDS, "placed", "held", "released", "fell_back", "duplicate", "dead_lettered"}
    if read.is_next:
        lines = [r.value or b"" for r in self_written(read)]
        assert all(b'"next_' in value for value in lines)


def self_written(read: Read) -> list[Record]:
    topics = ("evidence", "results", "progress", "pool-status", "seen-ids", "evidence-salts")
    return [record for topic in topics for record in read.records(topic)]


def test_results_and_evidence_are_read(read: Read) -> None:
    outcomes = read.corpus.outcomes
    results = [decode(Result, r.value or b"") for r in read.records("results")]
    assert {result.id: result.status for result in results} == outcomes["statuses"]
    evidence = [decode(Evidence, r.value or b"") for r in read.records("evidence")]
    assert sorted(f"{e.request_id} {e.step}" for e in evidence) == outcomes["steps"]
    for name in outcomes["statuses"]:
        story([each for each in evidence if each.request_id == name])
    pieces = [decode(StreamPiece, r.value or b"") for r in read.records("streams")]
    assert "".join(text_of(piece.chunk) for piece in pieces) == "one two three"
    (letter,) = read.records("dead-letters")
    assert h.find(letter.headers, h.REASON) == b"invalid_request"


def test_decisions_of_an_earlier_version_are_the_same_to_the_last_bit(read: Read) -> None:
    yard = read.yard
    evidence = [decode(Evidence, r.value or b"") for r in read.records("evidence")]
    decided = [each for each in evidence if each.profile is not None and each.inputs is not None]
    assert {(each.fleet_version, each.policy_version) for each in decided} == {
        (yard.options.version, yard.policy.version)
    }
    found = replay_steps(evidence, lambda _fleet, _policy: (yard.options, yard.policy))
    assert len(found) == len(decided)
    assert {each.step for each in found} >= {"placed", "held", "released", "rejected"}
    assert not [each for each in found if each.differences]


def test_views_of_the_evidence_count_each_of_it(read: Read) -> None:
    wanted = Counter(read.corpus.outcomes["statuses"].values())
    endings, report = Endings(), AuditReport(0.0, read.corpus.at + 1)
    view = LiveView(read.yard.catalogue, read.yard.options, read.yard.policy, since=0.0)
    ended: Counter[str] = Counter()
    for record in read.records("evidence"):
        found = endings.take(record.value)
        if found is not None:
            ended[ENDS[found.step.step]] += 1
        report.add(record.value or b"")
    assert (ended, endings.unreadable) == (wanted, 0)
    assert report.unreadable == 0
    assert report.total().requests == wanted.total()
    for topic in ("evidence", "pool-status", "held"):
        for record in read.records(topic):
            view.take(record, read.corpus.at)
    assert view.unreadable == 0
    assert Counter(view.total.statuses) == wanted
    assert snapshot_of(view, read.corpus.at).holds.held == len(read.corpus.outcomes["held"])


async def test_who_follows_a_topic_takes_all_of_it(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    yard, settings = read.yard, read.yard.settings
    heartbeats: list[PoolStatus] = []
    cancelled = Cancellations(yard.clock)
    followers = {
        "pool-status": FleetFollower(settings, heartbeats.append),
        "evidence-salts": SaltFollower(settings, yard.digests),
        "cancellations": CancellationFollower(settings, cancelled),
    }
    with caplog.at_level(logging.WARNING):
        for topic, follower in followers.items():
            for record in read.records(topic):
                follower.take(record)
    assert not caplog.records
    assert {each.pool for each in heartbeats} == {"premium-eu", "lpddr-us", "served-eu"}
    assert cancelled.find("cancelled-1") is not None
    # A tenant of which a salt is known gets no other.
    yard.digests.digest("acme", {"x": 1})
    assert not yard.digests.unwritten()
    said = PolicyLog()
    for record in read.records("policies"):
        said.add(record.value)
    assert [change.action for change in said.changes] == ["apply", "shadow"]
    for record in read.records("evidence-keys"):
        decode(KeyEntry, record.value or b"")
    for record in read.records("seen-ids"):
        assert decode(SeenIds, record.value or b"").sightings()


async def test_progress_stands_where_the_groups_do(read: Read) -> None:
    log = MemoryLog(read.yard.cluster)
    checked = 0
    for (group, partition), offset in read.corpus.offsets.items():
        stored = await read_progress(log, f"{PREFIX}.progress", group, [partition])
        assert not stored.unreadable
        assert stored.known[partition].next_offset == offset
        checked += 1
    assert checked > 4


async def test_a_router_goes_on_and_knows_what_came_before(read: Read) -> None:
    yard = read.yard
    before = Counter((e.request_id, e.step) for e in yard.evidence())
    await drain(await yard.run(make_router(yard)))
    new = Counter((e.request_id, e.step) for e in yard.evidence()) - before
    assert {name for name, _ in new} == {"unread-0", "unread-1"}
    twice = next(r for r in read.records("requests") if r.key == b"chat-1")
    home = twice.partition.number
    yard.cluster.publish(Outgoing(f"{PREFIX}.requests", twice.key, twice.value, partition=home))
    yard.cluster.members.clear()
    await drain(await yard.run(make_router(yard), MemoryLog(yard.cluster, "next")))
    assert [e.request_id for e in yard.evidence("duplicate")].count("chat-1") == 2


async def test_a_batcher_holds_what_is_held(read: Read) -> None:
    batcher = make_batcher(read.yard)
    await read.yard.run(batcher)
    held = sorted(m.profile.id for windows in batcher.windows() for m in windows.members())
    assert held == read.corpus.outcomes["held"]


async def test_a_worker_runs_what_is_left_and_nothing_twice(read: Read) -> None:
    yard, backend = read.yard, ScriptedBackend()
    transactor = await yard.run(make_worker(yard, backend))
    await transactor.step()
    assert sorted(backend.began) == ["lane-1", "lane-2"]
    # That of the record that was no request.
    assert len(yard.dead_letters()) == 1


# As it was recorded: what a next release adds it signs as well, and then it is no addition.
@pytest.mark.parametrize("version", versions())
async def test_the_trail_is_verified_also_when_it_goes_on(version: str) -> None:
    read = read_corpus(version, 0)
    yard, signer = read.yard, make_signer(read.yard.catalogue, read.yard.clock, read.yard.digests)
    findings = await verify_topic(MemoryLog(yard.cluster), yard.catalogue)
    # What it holds open has been due since.
    assert set(findings.counts) <= {"unended"}, findings.problems
    published = KeyEntry(published=signer.publish())
    name = (published.name or "").encode()
    yard.cluster.publish(Outgoing(f"{PREFIX}.evidence-keys", name, encode(published)))
    await drain(await yard.run(make_router(yard), signer=signer))
    again = await verify_topic(MemoryLog(yard.cluster), yard.catalogue)
    # What it holds open has been due since.
    assert set(again.counts) <= {"unended"}, again.problems
    assert again.records > findings.records


@pytest.mark.parametrize("version", versions())
async def test_a_mirror_of_the_trail_is_verified(version: str) -> None:
    read = read_corpus(version, 0)
    elsewhere = yard_of(read.corpus)
    mirrored = ("evidence", "evidence-roots", "evidence-keys")
    names = [f"{PREFIX}.{name}" for name in mirrored]
    elsewhere.cluster.create({name: elsewhere.cluster.topics[name] for name in names})
    elsewhere.cluster.create({f"{PREFIX}.progress": read.yard.settings.partitions})
    for name in mirrored:
        for record in read.records(name):
            topic, number = record.partition
            # Other offsets than it had; MirrorMaker keeps partitions and timestamps.
            elsewhere.cluster.publish(
                Outgoing(topic, record.key, record.value, partition=number), record.timestamp_ms
            )
    findings = await verify_topic(MemoryLog(elsewhere.cluster), elsewhere.catalogue)
    # What it holds open has been due since.
    assert set(findings.counts) <= {"unended"}, findings.problems
    assert findings.records == len(read.records("evidence"))
