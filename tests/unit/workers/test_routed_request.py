"""A request on a lane of a pool: what its record says is read once, however it ends."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest
from cancellation_cases import cancel
from memory_log import MemoryLog
from stream_cases import START, TRACEPARENT, Yard, step_until
from trace_cases import TracedYard
from worker_cases import PROMISED, ScriptedBackend, make_worker, place, placed

from policies.learning.feedback import Experience
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.trace_context import Context
from topics import BadRecordError, Batch
from topics.records import headers as h
from topics.records.headers import Headers
from topics.wire.codec import decode_unique_json_object
from workers.feedback import Learning
from workers.stage.routed_request import RoutedRequest

TRACE = Context(int(TRACEPARENT[3:35], 16), int(TRACEPARENT[36:52], 16), is_sampled=True)
TRACED = (("traceparent", TRACEPARENT), ("tracestate", b"a=b"))
BODY = {"model": "yard-8b", "messages": [{"role": "user", "content": "x"}], "stream": True}


class Looks:
    """How often each header of a record is looked up, and its value parsed.

    Only what is there counts, by the identity of its value: what is derived of the headers has
    the same values, and what a worker writes has others.
    """

    def __init__(self, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
        self.headers: Counter[str] = Counter()
        self.absent: Counter[str] = Counter()
        self.parsed = 0
        find = h.find
        values = {id(value) for _, value in record.headers}

        def counted(headers: Headers, name: str) -> bytes | None:
            value = find(headers, name)
            if value is not None and id(value) in values:
                self.headers[name] += 1
            elif value is None and headers is record.headers:
                self.absent[name] += 1
            return value

        def counted_value(value: bytes, names: Collection[str]) -> dict[str, Any]:
            self.parsed += value == record.value
            return decode_unique_json_object(value, names)

        monkeypatch.setattr(h, "find", counted)
        monkeypatch.setattr("topics.records.request.decode_unique_json_object", counted_value)


async def end(yard: Yard, backend: ScriptedBackend, how: str) -> None:
    """Let the request that runs end so."""
    if how == "completed":
        backend.finish("c0")
    elif how in ("failed", "fell_back"):
        backend.lose("c0", elsewhere=how == "fell_back")
    elif how == "cancelled":
        cancel(yard, "c0")


@pytest.mark.parametrize("how", ["completed", "failed", "fell_back", "expired", "cancelled"])
@pytest.mark.parametrize("lane", ["direct", "batch"])
@pytest.mark.parametrize("is_traced", [True, False])
async def test_no_header_is_read_twice_and_the_value_is_parsed_once(
    how: str, lane: Any, is_traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that watches a worker: its spans, and what it learns.

    Two rare paths read some of them again: a dead letter asks which request it was
    (``EvidenceWriter.set_aside``), and so does a trace that begins late (``write_earlier``).
    """
    yard = TracedYard() if is_traced else Yard()
    backend = ScriptedBackend()
    of_batch = ((h.BATCH_TRACEPARENT, TRACEPARENT[:-4] + b"7-01"),) if lane == "batch" else ()
    extra = (*TRACED, *of_batch)
    deadline = START + 9
    record = place(yard, "c0", lane=lane, extra=extra, body=BODY, deadline=deadline)
    looks = Looks(record, monkeypatch)
    worker = make_worker(yard, backend)
    observers: list[Any] = [Learning(Experience(0.0))]
    if isinstance(yard, TracedYard):
        observers.append(yard.observer(worker))
    if how == "expired":
        yard.clock.at = deadline
    log = MemoryLog(yard.cluster, "a")
    transactor = await Yard.run(yard, worker, log, observers=observers)
    if how != "expired":
        await step_until(transactor, lambda: bool(backend.running), "the call")
    await end(yard, backend, how)
    await step_until(transactor, yard.evidence, "the end")

    (evidence,) = yard.evidence()
    assert evidence.step == ("executed" if how == "completed" else how)
    assert evidence.trace_id == TRACEPARENT.decode()[3:35]
    assert evidence.promised == PROMISED
    if isinstance(yard, TracedYard):
        assert len(yard.spans()) > 1
    there = {name for name, _ in record.headers} - {"own", "tracestate"}
    passed_on = {"tracestate"} if how == "fell_back" else set()
    assert looks.headers == dict.fromkeys(there | passed_on, 1)
    # What goes on with a request is asked of the one that says which fields are known.
    again = Counter({h.CRITICAL: 1} if how == "fell_back" else {})
    assert set((looks.absent - again).values()) == {1}, looks.absent
    assert looks.parsed == 1


def record_of(outgoing: Outgoing, **changes: Any) -> Record:
    record = Record(
        Partition(outgoing.topic, 0), 7, outgoing.key, outgoing.value, outgoing.headers, 0
    )
    return record._replace(**changes)


def changed(record: Record, **headers: bytes | None) -> Record:
    """Return a record with other headers; None takes one away."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    kept = [header for header in record.headers if header[0] not in names]
    return record._replace(headers=[*kept, *((n, v) for n, v in names.items() if v is not None)])


def test_all_that_a_record_says_is_in_one_place() -> None:
    yard = Yard()
    extra = (*TRACED, (h.BATCH_TRACEPARENT, TRACEPARENT))
    outgoing = placed(yard, "s0", lane="batch", extra=extra, metadata={"of": "mine"})
    record = record_of(outgoing)
    routed = RoutedRequest.of(record)
    assert routed.record == record._replace(context=TRACE)
    assert routed.record.trace_id == record.trace_id
    assert (routed.request.id, routed.request.metadata) == ("s0", {"of": "mine"})
    assert (routed.profile.id, routed.profile.attempt) == ("s0", 1)
    assert (routed.pool, routed.variant) == ("premium-eu", "yard-8b-fp8")
    assert not routed.is_direct
    assert routed.promised == PROMISED
    assert routed.batch == Batch("b-0", 0, 2)
    assert routed.released_at == START + 0.5
    assert routed.batch_context == TRACE


def test_what_was_never_held_has_no_batch_and_no_release() -> None:
    routed = RoutedRequest.of(record_of(placed(Yard(), "c0")))
    assert (routed.batch, routed.released_at, routed.batch_context) == (None, None, None)
    assert (routed.is_direct, routed.record.context, routed.record.trace_id) == (True, None, None)


@pytest.mark.parametrize("value", [None, b"", b"{}", b"nonsense", b"\xff"])
def test_a_promise_or_a_context_that_is_none_counts_as_missing(value: bytes | None) -> None:
    record = record_of(placed(Yard(), "c0", extra=TRACED))
    broken = changed(
        record,
        shunter_promised=value,
        traceparent=value,
        shunter_batch_traceparent=value,
    )
    routed = RoutedRequest.of(broken)
    assert (routed.promised, routed.record.context, routed.batch_context) == (None, None, None)


@pytest.mark.parametrize(
    ("headers", "value", "reason"),
    [
        ({"shunter_critical": b"x"}, b"{", "newer_version"),
        ({"shunter_profile": None, "shunter_placement": None}, b"{", "missing_header"),
        ({"shunter_placement": b"[]"}, b"{", "bad_header"),
        ({"shunter_batch_index": b"2"}, b"{", "bad_header"),
        ({"shunter_released_at": b"noon"}, b"{", "bad_header"),
        ({"shunter_released_at": b"nan"}, b"{", "bad_header"),
        ({"shunter_released_at": b"-inf"}, b"{", "bad_header"),
        ({}, b"{", "not_json"),
        ({}, None, "empty_value"),
    ],
)
def test_the_first_that_is_wrong_names_the_reason(
    headers: dict[str, bytes | None], value: bytes | None, reason: str
) -> None:
    """The version, then the headers, and the value last."""
    record = record_of(placed(Yard(), "s0", lane="batch"), value=value)
    with pytest.raises(BadRecordError) as raised:
        RoutedRequest.of(changed(record, **headers))
    assert raised.value.reason == reason


def test_what_could_not_be_read_says_so_before_all_else() -> None:
    error = BadRecordError("decode", "corrupt", "a batch that is none")
    record = record_of(placed(Yard(), "c0"), unreadable=error, headers=[], value=None)
    with pytest.raises(BadRecordError) as raised:
        RoutedRequest.of(record)
    assert raised.value is error
