"""Hostile values and headers: each is read or refused with a reason, in bounded time and memory.

SHUNTER_FUZZ_EXAMPLES sets the number of inputs of each property; `make fuzz` has 100,000.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress

import pytest
from hold_cases import make_batcher
from hostile import (
    CONTEXTS,
    HEADERS,
    KEYS_OF_RECORDS,
    LINE,
    MIB,
    NOW_MS,
    PROPERTY,
    SCALARS,
    TIMES,
    TIMES_NOT_BEFORE_NOW,
    VALUES,
    WHOLE,
    WORST,
    Headers,
    bounded,
    made,
    mangled,
    repeated,
)
from hypothesis import example, given
from hypothesis import strategies as st
from memory_log import MemoryLog
from policy_cases import NOW, bulk
from stream_cases import START, Yard
from trace_cases import TracedYard
from worker_cases import POOL, ScriptedBackend, make_worker, placed

from streams.batcher.partition_state import held_at_of
from streams.cancellation.index import CancellationFollower, message_of
from streams.cancellation.stage import Canceller
from streams.engine.log import Partition, Record
from streams.engine.stage import Effect, Stage, TransactionPlan
from topics import (
    BadRecordError,
    Evidence,
    Fallback,
    Placement,
    PoolStatus,
    Profile,
    Progress,
    Response,
    Result,
    StreamPiece,
    Usage,
    decode,
    encode,
    parse_request,
    peek_id,
)
from topics.records import headers as h
from workers.backends.base import Call, Outcome

KINDS = [Profile, Placement, Progress, PoolStatus, Result, Evidence]

# Hypothesis says so of an input that failed, where what failed is to be told.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


@pytest.fixture(autouse=True, scope="module")
def _told() -> Iterator[None]:
    yield
    print(
        f"\n{WORST.inputs:,} inputs: at worst {WORST.time:.0%} of the time and {WORST.memory:.0%}"
        " of the memory that an input of its size may take"
    )


def bytes_of(value: bytes | None, headers: Headers) -> int:
    return len(value or b"") + sum(len(each or b"") for _, each in headers)


def read_or_refused(read: Callable[[], object]) -> None:
    try:
        read()
    except BadRecordError as error:
        refused = error
    else:
        return
    assert refused.reason
    assert len(refused.message) < 2000


@PROPERTY
@given(value=VALUES)
def test_any_value_is_a_request_or_refused(value: bytes) -> None:
    with bounded(len(value)):
        read_or_refused(lambda: parse_request(value, bytes_max=MIB))


@PROPERTY
@given(value=VALUES, default_id=st.none() | st.just("c"))
def test_a_request_has_the_id_that_a_peek_finds(value: bytes, default_id: str | None) -> None:
    with bounded(len(value)):
        peeked = peek_id(value, default_id)
    with suppress(BadRecordError):
        assert parse_request(value, bytes_max=MIB, default_id=default_id).id == peeked


@PROPERTY
@given(value=VALUES, kind=st.sampled_from(KINDS))
def test_any_value_is_a_record_or_refused(value: bytes, kind: type) -> None:
    with bounded(len(value)):
        read_or_refused(lambda: decode(kind, value))


@PROPERTY
@given(headers=HEADERS)
def test_any_headers_are_read_or_refused(headers: Headers) -> None:
    with bounded(bytes_of(None, headers)):
        for name, kind in ((h.PROFILE, Profile), (h.PLACEMENT, Placement)):
            read_or_refused(lambda name=name, kind=kind: h.read(headers, name, kind))
        read_or_refused(lambda: h.read_batch(headers))
        read_or_refused(lambda: h.cloud_event_id(headers))
        h.trace_id(headers)
        h.client_headers(headers)


PROFILES = st.sampled_from(
    [
        encode(bulk()),
        encode(bulk(regions=("a",), labels={"a": "b"}, max_cost_usd=0.5, deadline=NOW)),
        encode(bulk(fallbacks=(Fallback("p", "r"),), exclude_pools=("p",), session="s")),
    ]
)


@PROPERTY
@given(value=PROFILES | mangled(PROFILES))
@example(value=encode(bulk()).replace(b'"attempt":1', b'"attempt":' + b"9" * 30))
def test_a_profile_is_read_as_any_header_is(value: bytes) -> None:
    found, told = [], []
    for read in (h.read_profile, lambda headers: h.read(headers, h.PROFILE, Profile)):
        with bounded(len(value)):
            try:
                found.append(read([(h.PROFILE, value)]))
            except BadRecordError as error:
                told.append(str(error))
    if len(found) == 1:
        # Of a field that nobody knows the first doesn't look at the value.
        found.append(h.read([(h.PROFILE, encode(found[0]))], h.PROFILE, Profile))
        told.clear()
    assert len(set(map(repr, found)) | set(told)) == 1


class Ground:
    """An installation in memory, and the loop that its stages run on."""

    def __init__(self) -> None:
        self.yard = TracedYard()
        self._runner = asyncio.Runner()
        self._offset = 0

    def _next(
        self,
        partition: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int = NOW_MS,
    ) -> Record:
        self._offset += 1
        return Record(partition, self._offset, key, value, headers, timestamp_ms)

    def _sent(self) -> None:
        # The collector reads each span as the protocol's library does.
        self.yard.span_queue.flush()
        self.yard.collector.requests.clear()

    def close(self) -> None:
        """End the loop and the thread of the spans."""
        self._runner.close()
        self.yard.span_queue.close()


class Path(Ground):
    """Router and batcher, as far as a record of the ingest topic comes, with spans of it all."""

    def __init__(self) -> None:
        super().__init__()
        # Few, as hypothesis likes to draw an id again.
        self._router = self.yard.router(duplicate_window_records=1)
        self._batcher = make_batcher(self.yard)
        self._observer = self.yard.observer(self._router)
        self._ingest = Partition(self.yard.catalogue.requests, 0)
        self._hold = Partition(self.yard.catalogue.held, 0)
        self.taken: Counter[str] = Counter()
        log = MemoryLog(self.yard.cluster)
        self._runner.run(self._router.restore(self._ingest, None, log))
        self._runner.run(self._batcher.restore(self._hold, None, log))

    def take(
        self, key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int
    ) -> Effect:
        """Route a record, hold and release it where that was decided; return the first effect."""
        record = self._next(self._ingest, key, value, headers, timestamp_ms)
        effect = self._step(self._router, record)[0]
        for out in effect.records:
            if out.topic == self._hold.topic:
                held = Record(
                    self._hold, self._offset, out.key, out.value, out.headers, record.timestamp_ms
                )
                assert held_at_of(held) == START
                self._step(self._batcher, held)
        return effect

    def _step(self, stage: Stage, record: Record) -> list[Effect]:
        work = self._runner.run(stage.work(record.partition, [record]))
        if work is None:
            return []
        stage.done(record.partition, work)
        self._observer(record.partition, work.effects)
        self._sent()
        return list(work.effects)


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    path = Path()
    yield path
    path.close()
    print("\nrecords to", dict(path.taken))


@PROPERTY
@given(
    key=KEYS_OF_RECORDS,
    value=made() | made() | mangled(made()) | st.none(),
    headers=HEADERS,
    timestamp_ms=TIMES,
)
def test_any_record_is_routed_held_ended_or_a_dead_letter(
    path: Path, key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int
) -> None:
    with bounded(bytes_of(value, headers)):
        effect = path.take(key, value, headers, timestamp_ms)
    topics, catalogue = {out.topic for out in effect.records}, path.yard.catalogue
    for out in effect.records:
        if out.topic == catalogue.evidence:
            decode(Evidence, out.value)
        elif out.topic == catalogue.results:
            decode(Result, out.value)
        elif out.topic == catalogue.dead_letters:
            assert out.value == value
        else:
            assert out.value == value
            h.read(out.headers, h.PROFILE, Profile)
            assert len([name for name, _ in out.headers if name == h.PROFILE]) == 1
    assert catalogue.evidence in topics
    # As any router is asked again for what it reads back: what it took is a request, and else not.
    with pytest.raises(BadRecordError) if effect.is_dead_letter else nullcontext():
        parse_request(value, bytes_max=100_000, default_id=h.cloud_event_id(headers))
    path.taken.update(topics)


REASONS = VALUES | SCALARS.map(lambda value: b'{"reason":%s}' % value) | repeated()


class Cancelling(Ground):
    """What a cancellation comes to: each process that follows them, and the canceller."""

    def __init__(self) -> None:
        super().__init__()
        self._canceller = Canceller(self.yard.evidence_writer(), self.yard.clock)
        self.cancellations = self.yard.cancellations
        self._follower = CancellationFollower(self.yard.settings, self.cancellations)
        self.told: list[str] = []
        self.cancellations.tell(self.told.append)
        self._partition = Partition(self.yard.catalogue.cancellations, 0)

    def take(
        self, key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int
    ) -> Effect:
        """Take a cancellation in; return what comes of it."""
        self.told.clear()
        record = self._next(self._partition, key, value, headers, timestamp_ms)
        self._follower.take(record)
        work = self._runner.run(self._canceller.work(self._partition, [record]))
        assert work is not None
        return work.effects[0]


@pytest.fixture(scope="module")
def cancelling() -> Iterator[Cancelling]:
    cancelling = Cancelling()
    yield cancelling
    cancelling.close()


@PROPERTY
@given(
    key=KEYS_OF_RECORDS,
    value=st.none() | REASONS,
    headers=HEADERS,
    timestamp_ms=TIMES_NOT_BEFORE_NOW,
)
def test_any_cancellation_is_known_to_all_or_a_dead_letter(
    cancelling: Cancelling,
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
    timestamp_ms: int,
) -> None:
    with bounded(len(key or b"") + bytes_of(value, headers)):
        effect = cancelling.take(key, value, headers, timestamp_ms)
    (out,) = [o for o in effect.records if o.topic == cancelling.yard.catalogue.evidence]
    evidence = decode(Evidence, out.value or b"")
    if effect.is_dead_letter:
        assert cancelling.told == []
        assert evidence.reason == "invalid_cancellation"
        return
    assert key is not None
    assert cancelling.told == [key.decode()] == [evidence.request_id]
    known = cancelling.cancellations.find(key.decode())
    assert known is not None
    assert len(message_of(known)) < 300


class AnsweringBackend(ScriptedBackend):
    """Answers at once."""

    async def execute(self, call: Call) -> Outcome:
        return Outcome(
            Response(200, {"choices": [{"text": "x"}]}),
            Usage(20, 10),
            started_at=START,
            first_token_at=START,
            finished_at=START,
            device_s=0.1,
        )


class Lanes(Ground):
    """A worker, as far as a record of its lanes comes, with spans of it all."""

    def __init__(self) -> None:
        super().__init__()
        self._worker = make_worker(self.yard, AnsweringBackend())
        self._observer = self.yard.observer(self._worker)
        self.ended: Counter[str] = Counter()
        self._partitions = {
            lane: Partition(self.yard.catalogue.pool_lane(POOL, lane), 0) for lane in LANES
        }
        for partition in self._partitions.values():
            log = MemoryLog(self.yard.cluster)
            self._runner.run(self._worker.restore(partition, None, log))

    def take(
        self, lane: str, key: bytes | None, value: bytes | None, headers: Headers
    ) -> Sequence[Effect]:
        """Run a record of a lane; return its effects."""
        partition = self._partitions[lane]
        record = self._next(partition, key, value, headers)
        work = self._runner.run(self._run(partition, record))
        self._worker.done(partition, work)
        self._observer(partition, work.effects)
        self._sent()
        return work.effects

    async def _run(self, partition: Partition, record: Record) -> TransactionPlan:
        work = await self._worker.work(partition, [record])
        while work is None:
            await asyncio.sleep(0)
            work = await self._worker.work(partition, [])
        return work


LANES = ("direct", "batch")
# What router and batcher add, of each lane.
ADDED = {lane: dict(placed(Yard(), "r1", lane=lane).headers) for lane in LANES}


@st.composite
def lane_headers(draw: st.DrawFn, lane: str) -> Headers:
    """The headers of a record on a lane, of which some are odd, null, gone, or there twice."""
    headers: dict[str, bytes | None] = dict(ADDED[lane])
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        name = draw(st.sampled_from(list(headers)))
        if draw(st.integers(0, 4)) == 0:
            del headers[name]
        else:
            right = st.just(headers[name] or b"")
            headers[name] = draw(mangled(right) | CONTEXTS | SCALARS | st.none())
    return [*headers.items(), *draw(HEADERS)] if draw(st.booleans()) else list(headers.items())


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()
    print("\nrecords of lanes:", dict(lanes.ended))


PLACED = st.sampled_from(LANES).flatmap(lambda lane: st.tuples(st.just(lane), lane_headers(lane)))
ON_LANES = st.sampled_from([WHOLE, LINE])


@PROPERTY
@given(
    placed_on=PLACED,
    key=KEYS_OF_RECORDS,
    value=ON_LANES | made() | mangled(made()) | st.none(),
)
def test_any_record_of_a_lane_ends_and_is_no_end_of_the_worker(
    lanes: Lanes, placed_on: tuple[str, Headers], key: bytes | None, value: bytes | None
) -> None:
    lane, headers = placed_on
    with bounded(bytes_of(value, headers)):
        (effect,) = lanes.take(lane, key, value, headers)
    catalogue = lanes.yard.catalogue
    for out in effect.records:
        if out.topic == catalogue.evidence:
            lanes.ended[decode(Evidence, out.value or b"").step] += 1
        elif out.topic == catalogue.results:
            decode(Result, out.value or b"")
        elif out.topic == catalogue.streams:
            decode(StreamPiece, out.value or b"")
        else:
            assert out.topic in (catalogue.reroutes, catalogue.dead_letters)
            assert out.value == value
    assert catalogue.evidence in {out.topic for out in effect.records}


def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
    """As many units as a request may have bytes."""
    return start + unit * ((MIB - len(start) - len(end)) // len(unit)) + end


HOSTILE = {
    "open arrays": filled(b"", b"[", b""),
    "open objects": filled(b"", b'{"a":', b""),
    "nested in the body": filled(b'{"id":"a","body":{"x":', b"[", b""),
    "one long number": filled(b'{"id":"a","body":{"max_tokens":', b"9", b"}}"),
    "one long exponent": filled(b'{"id":"a","deadline":1e', b"9", b',"body":{}}'),
    "one long string": filled(b'{"id":"', b"a", b'","body":{}}'),
    "escapes": filled(b'{"id":"a","body":{"model":"', b"\\u0041", b'"}}'),
    "the same key": filled(b'{"id":"a"', b',"x":1', b"}"),
    "many keys": b'{"id":"a","body":{"model":"m"},'
    + b",".join(b'"k%06x":1' % i for i in range(80_000))
    + b"}",
    "many keys in the body": b'{"id":"a","body":{"model":"m",'
    + b",".join(b'"k%06x":1' % i for i in range(80_000))
    + b"}}",
    "many regions": filled(
        b'{"id":"a","body":{"model":"m"},"constraints":{"regions":["a"', b',"b"', b"]}}"
    ),
    "many wrong regions": filled(
        b'{"id":"a","body":{"model":"m"},"constraints":{"regions":[1', b",1", b"]}}"
    ),
    "empty lists": filled(b'{"id":"a","body":{"model":"m","x":[[]', b",[]", b"]}}"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_worst_of_a_full_size_takes_bounded_time_and_memory(kind: str) -> None:
    value = HOSTILE[kind]
    assert len(value) <= MIB
    with bounded(len(value)):
        read_or_refused(lambda: parse_request(value, bytes_max=MIB))
