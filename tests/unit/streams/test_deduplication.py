"""A request that a client publishes twice is served once, whoever owns the partition by then."""

import random
from dataclasses import replace
from typing import Any

import orjson
import pytest
from memory_log import Crash, CutOffError, MemoryCluster, MemoryLog, ProcessKilledError
from stream_cases import Yard, drain, keys, make_transactor, request
from tiers import seeds

from streams.engine import retries
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.transactor import Transactor
from streams.router.deduplication import Duplicates
from streams.router.id_window import RecentIds
from streams.router.stage import Router
from topics import BadRecordError, Progress, SeenIds, decode, encode

WINDOW = 100


def make_router(yard: Yard, window_records: int = WINDOW) -> Router:
    return Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=yard.settings.request_bytes_max,
        duplicate_window_records=window_records,
    )


async def take_over(yard: Yard, window_records: int = WINDOW) -> Transactor:
    """Return a new router that has all partitions; whoever had them is gone."""
    yard.cluster.members.clear()
    return await yard.run(make_router(yard, window_records))


def served(yard: Yard) -> list[str]:
    """Return what was sent to a pool, each as often as it was sent."""
    return keys(yard.lane("premium-eu", "direct"))


def duplicates(yard: Yard) -> list[tuple[str, int]]:
    return [(e.request_id, e.source.offset) for e in yard.evidence("duplicate")]


async def test_of_two_in_one_poll_the_first_is_served_and_the_second_evidenced() -> None:
    yard = Yard()
    for name in ("a", "b", "a"):
        yard.publish(0, id=name)
    await drain(await take_over(yard))
    assert served(yard) == ["a", "b"]
    (evidence,) = yard.evidence("duplicate")
    assert (evidence.request_id, evidence.source.offset) == ("a", 2)
    assert evidence.reason == "same_id"
    assert f"{yard.catalogue.requests}/0@0" in (evidence.message or "")
    assert (evidence.tenant, evidence.model) == ("default", "yard-8b")
    assert not yard.results()
    assert not yard.dead_letters()


async def test_of_two_in_different_polls_the_first_is_served() -> None:
    yard = Yard()
    yard.publish(0, id="a")
    transactor = await take_over(yard)
    await drain(transactor)
    for _ in range(2):
        yard.publish(0, id="a")
        await drain(transactor)
    assert served(yard) == ["a"]
    assert duplicates(yard) == [("a", 1), ("a", 2)]
    # Each names the one that was served, not the duplicate before it.
    assert all((e.message or "").endswith("@0") for e in yard.evidence("duplicate"))


@pytest.mark.parametrize("kind", ["rejected", "held"])
async def test_whatever_became_of_the_first_a_second_has_no_result(kind: str) -> None:
    fields: dict[str, Any] = {"rejected": {"task": "knitting"}, "held": {"task": "summarization"}}
    yard = Yard()
    for _ in range(2):
        yard.publish(0, id="a", **fields[kind])
    await drain(await take_over(yard))
    assert [e.step for e in yard.evidence()] == [kind, "duplicate"]
    assert len(yard.results()) == (kind == "rejected")


async def test_a_new_owner_knows_the_ids_of_its_predecessor() -> None:
    yard = Yard()
    yard.publish(0, id="a")
    yard.publish(1, id="b")
    await drain(await take_over(yard))
    yard.publish(0, id="a")
    yard.publish(1, id="b")
    # Ids of another partition are not known: a window is that of one partition.
    yard.publish(1, id="a")
    await drain(await take_over(yard))
    assert sorted(served(yard)) == ["a", "a", "b"]
    assert sorted(duplicates(yard)) == [("a", 1), ("b", 1)]


async def test_a_broker_that_is_gone_while_a_first_is_looked_at_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    yard = Yard()
    yard.publish(0, id="a")
    await drain(await take_over(yard))
    log = MemoryLog(yard.cluster)
    fetch, fails = log.fetch, [1, 2]

    async def gone_at_first(*args: Any) -> Any:
        if fails.pop():
            raise CutOffError("the broker is gone")
        return await fetch(*args)

    fails.insert(0, 0)
    log.fetch = gone_at_first  # type: ignore[method-assign,assignment]
    yard.cluster.members.clear()
    transactor = await yard.run(make_router(yard), log)
    yard.publish(0, id="a")
    await drain(transactor)
    assert (served(yard), duplicates(yard), fails) == (["a"], [("a", 1)], [])


async def test_an_owner_that_gave_a_partition_up_forgets_its_ids() -> None:
    yard = Yard()
    yard.publish(0, id="a")
    router = make_router(yard)
    await drain(await yard.run(router))
    partition = Partition(yard.catalogue.requests, 0)
    assert router._duplicates.known(partition) == 1
    await yard.cluster.assign(router.group, {})
    assert router._duplicates.known(partition) == 0


async def test_what_lies_before_the_window_is_forgotten_alike_with_and_without_a_takeover() -> None:
    for is_taken_over in (False, True):
        yard = Yard()
        for name in ("a", "b", "c", "d"):
            yard.publish(0, id=name)
        transactor = await take_over(yard, 3)
        await drain(transactor)
        # "b" stands three records before it, "a" four before its own.
        for name in ("b", "a"):
            yard.publish(0, id=name)
        if is_taken_over:
            transactor = await take_over(yard, 3)
        await drain(transactor)
        assert served(yard) == ["a", "b", "c", "d", "a"], is_taken_over
        assert duplicates(yard) == [("b", 4)], is_taken_over


async def test_a_window_of_none_serves_each() -> None:
    yard = Yard()
    for _ in range(2):
        yard.publish(0, id="a")
    await drain(await take_over(yard, 0))
    assert served(yard) == ["a", "a"]
    assert not duplicates(yard)


@pytest.mark.parametrize("point", ["begin", "append", "commit", "committed"])
async def test_a_transaction_that_was_aborted_leaves_no_id_behind(point: Any) -> None:
    """The first is served exactly once, whether or not the one who saw it lived to commit it."""
    yard = Yard()
    yard.publish(0, id="a")
    yard.publish(0, id="a")
    yard.cluster.crash = Crash(point)
    with pytest.raises(ProcessKilledError):
        await drain(await take_over(yard))
    await drain(await take_over(yard))
    assert served(yard) == ["a"]
    assert duplicates(yard) == [("a", 1)]


async def test_a_request_that_the_log_refuses_is_the_first_of_its_id_all_the_same() -> None:
    yard = Yard()
    lane = yard.catalogue.pool_lane("premium-eu", "direct")
    yard.cluster.refuse = lambda record: record.topic == lane
    yard.publish(0, id="a")
    transactor = await take_over(yard)
    await drain(transactor)
    yard.publish(0, id="a")
    await drain(transactor)
    # It has its one result: it failed.
    assert yard.results()["a"].status == "failed"
    assert duplicates(yard) == [("a", 1)]


BAD: dict[str, tuple[bytes, BadRecordError | None]] = {
    "a misspelt constraint": (orjson.dumps(request(id="a", constraints={"region": []})), None),
    "an unreadable header": (
        orjson.dumps(request(id="a")),
        BadRecordError("decode", "header_not_utf8", "not UTF-8"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("is_taken_over", [False, True])
async def test_what_was_no_request_can_be_mended_and_published_again(
    kind: str, *, is_taken_over: bool
) -> None:
    value, error = BAD[kind]
    yard = Yard()
    yard.cluster.publish(Outgoing(yard.catalogue.requests, b"a", value, [], 0), unreadable=error)
    transactor = await take_over(yard)
    await drain(transactor)
    yard.publish(0, id="a")
    if is_taken_over:
        transactor = await take_over(yard)
    await drain(transactor)
    assert len(yard.dead_letters()) == 1
    assert served(yard) == ["a"]
    assert not duplicates(yard)


async def test_a_read_back_stops_where_routing_goes_on() -> None:
    """What the predecessor did not come to is new, though it stands in the log already."""
    yard = Yard()
    for n in range(30):
        yard.publish(0, id=f"c{n}")
    router = make_router(yard, 10)
    log = MemoryLog(yard.cluster)
    first = make_transactor(log, router, yard.catalogue.progress, records_max=20)
    await first.start()
    await yard.cluster.rebalance(router.group)
    await first.step()
    assert len(served(yard)) == 20
    yard.cluster.trim(Partition(yard.catalogue.requests, 0), 15)
    await drain(await take_over(yard, 10))
    assert served(yard) == [f"c{n}" for n in range(30)]
    assert not duplicates(yard)


async def test_ids_count_for_good_only_once_their_transaction_is_visible() -> None:
    yard = Yard()
    yard.publish(0, id="a")
    router = make_router(yard)
    transactor = await yard.run(router)
    yard.cluster.crash = Crash("commit")
    with pytest.raises(ProcessKilledError):
        await drain(transactor)
    assert router._duplicates.known(Partition(yard.catalogue.requests, 0)) == 0


@pytest.mark.parametrize("seed", seeds(10, 40))
def test_read_back_ids_decide_as_those_that_were_there_all_along(seed: int) -> None:
    """Records that bear an id and are no request count for nothing, read back or not."""
    rng = random.Random(seed)
    window = rng.randint(1, 12)
    offset, log, known = 0, [], RecentIds(window)
    fit: dict[int, bool] = {}
    for _ in range(300):
        offset += rng.choice([1, 1, 1, 2, 5])
        name = f"r{rng.randint(0, 15)}"
        fit[offset] = rng.random() < 0.7
        before = {o: n for o, n in log if offset - window <= o}
        restored = RecentIds(window)
        for o, n in before.items():
            restored.read_back(n, o, lambda o=o: fit[o])
        if fit[offset]:
            is_duplicate = name in [n for o, n in before.items() if fit[o]]
            assert (known.seen(name, offset) is not None) is is_duplicate
            if (unchecked := restored.unchecked(name)) is not None:
                restored.check(name, is_request=fit[unchecked])
            first = restored.seen(name, offset)
            assert (first is not None) is is_duplicate
            assert first is None or (
                fit[first] and log[[o for o, _ in log].index(first)][1] == name
            )
        log.append((offset, name))
        if rng.random() < 0.5:
            known.keep()
            assert len(known) <= window


async def test_a_bad_record_that_is_read_back_does_not_make_a_request_its_duplicate() -> None:
    yard = Yard()
    yard.publish(0, id="mended", slo="soon")
    yard.publish(0, id="served")
    yard.publish(0, id="twice")
    yard.publish(0, id="twice", slo="soon")
    await drain(await take_over(yard))
    for name in ("mended", "served", "twice"):
        yard.publish(0, id=name)
    await drain(await take_over(yard))
    assert served(yard) == ["served", "twice", "mended"]
    assert duplicates(yard) == [("served", 5), ("twice", 6)]
    assert len(yard.dead_letters()) == 2


INGEST, SEEN = Partition("in", 0), Partition("seen", 0)


class Shop:
    """One ingest partition, whose owner changes. A name with a ! is that of what is no request."""

    def __init__(self, window: int) -> None:
        self.cluster = MemoryCluster({"in": 1, "seen": 1})
        self.window = window
        self.log: list[str] = []
        self.reads: list[tuple[str, int, int]] = []
        self.restored_at = 0

    def _first(self, name: str, until: int) -> int:
        first = last = -1
        for offset in range(max(0, self.restored_at - self.window), until):
            if self.log[offset] == name:
                first = offset if first < 0 or last < offset - self.window else first
                last = offset
        return first

    def _is_request(self, record: Record) -> bool:
        return b"bad" not in (record.value or b"")

    async def owner(self) -> Duplicates:
        """Return the next owner, who has restored what came."""
        log, reads = MemoryLog(self.cluster), self.reads
        reads.clear()

        class Watched(MemoryLog):
            def read(self, starts: Any, ends: Any = None) -> Any:
                reads.extend((p.topic, start, ends[p]) for p, start in starts.items())
                return log.read(starts, ends)

        found = Duplicates("seen", self.window, self._is_request)
        done = self.restored_at = len(self.log)
        await found.restore(INGEST, Progress(done) if done else None, Watched(self.cluster))
        return found

    async def serve(self, owner: Duplicates, names: list[str], *, writes: bool = True) -> None:
        """Let the owner see some, and check what it says against all that came before."""
        for name in names:
            value = orjson.dumps({"id": name.strip("!"), "kind": "bad" if "!" in name else "fit"})
            self.cluster.publish(Outgoing("in", b"", value, partition=0))
        start = len(self.log)
        records = [r for r in self.cluster.records("in") if r.offset >= start]
        fit = [n for n in names if "!" not in n]
        await owner.check_first(INGEST, fit)
        for record, name in zip(records, names, strict=True):
            if "!" not in name:
                before = self.log[max(0, len(self.log) - self.window) :]
                first = owner.first(record, name)
                assert (first is not None) is (name in before), (record.offset, name)
                if first is not None:
                    # The one that was served, as far back as this owner has looked.
                    assert self.log[first] == name
                    assert first <= self._first(name, record.offset)
            self.log.append(name)
        for effect in owner.finished(INGEST, len(self.log)):
            if writes:
                self.cluster.publish(effect.records[0])
        owner.done(INGEST)


@pytest.mark.parametrize("seed", seeds(15, 60))
async def test_ids_that_were_written_down_decide_as_those_that_were_there_all_along(
    seed: int,
) -> None:
    rng = random.Random(seed)
    shop = Shop(rng.choice([1, 3, 10, 40, 250]))
    names = rng.choice([5, 40, 400])
    owner = await shop.owner()
    # One in whose time nothing is written down: of an earlier version.
    for _ in range(12):
        writes = rng.random() < 0.8
        for _ in range(rng.randint(0, 12)):
            some = [f"r{rng.randrange(names)}" for _ in range(rng.randint(1, 15))]
            await shop.serve(
                owner, [n + "!" if rng.random() < 0.2 else n for n in some], writes=writes
            )
        if rng.random() < 0.1:
            bad = rng.choice([b"[]", b"{", b"", encode(SeenIds(8, 4, (), "", is_checked=True))])
            shop.cluster.publish(Outgoing("seen", b"0/0", bad, partition=0))
        owner = await shop.owner()


async def test_of_a_full_window_a_fiftieth_is_read_from_the_requests() -> None:
    shop = Shop(1000)
    owner = await shop.owner()
    for n in range(0, 3010, 10):
        await shop.serve(owner, [f"r{m}" for m in range(n, n + 10)])
    owner = await shop.owner()
    assert [read for read in shop.reads if read[0] == "in"] == [("in", 3000, 3010)]
    assert owner.known(INGEST) == 1000
    await shop.serve(owner, ["r2009", "r2010", "r3009", "new"])
    # As many keys as blocks reach into the window: compaction leaves no more.
    assert len({r.key for r in shop.cluster.records("seen")}) == 52


async def test_where_a_block_is_missing_the_requests_before_it_are_read() -> None:
    shop = Shop(1000)
    owner = await shop.owner()
    for n in range(0, 1500, 10):
        await shop.serve(owner, [f"r{m}" for m in range(n, n + 10)], writes=not 900 <= n < 930)
    await shop.owner()
    assert [r for r in shop.reads if r[0] == "in"] == [("in", 500, 920)]


def test_where_routing_begins_far_from_the_first_offset_no_empty_past_is_written() -> None:
    known = RecentIds(1000)
    known.seen("a", 5_000_003)
    blocks = known.finished(5_000_020)
    assert [block.next_offset for block in blocks] == list(range(4_999_040, 5_000_021, 20))
    assert [len(block.offsets) for block in blocks] == [0] * 49 + [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("digests", "AAAA"), ("digests", "?"), ("next_offset", 0), ("offsets", (1, 2, 3))],
)
def test_a_block_that_holds_nonsense_is_told(field: str, value: Any) -> None:
    block = SeenIds.of(0, 4, [(1, b"0" * 16), (2, b"1" * 16)], is_checked=True)
    assert decode(SeenIds, encode(block)).sightings() == [(1, b"0" * 16), (2, b"1" * 16)]
    with pytest.raises(BadRecordError, match=r"digests|next_offset"):
        replace(block, **{field: value}).sightings()
