"""A range of the live ingest topic replayed as a trace."""

import orjson
from memory_log import MemoryLog
from stream_cases import START, Yard, request

from policies.backtest.fault_model import Reality
from policies.backtest.workload import profiles_of, repeat
from shunter.backtest.suite import Setting, run_one, shunter
from shunter.backtest.topic import TopicTrace, read_topic
from streams.config.token_counting import TokenCounter
from streams.engine.log import Outgoing
from topics import Result, Timing, Usage, encode
from topics.records.quote_token import QuoteTerms, token_of


def publish(yard: Yard, at: float, value: bytes) -> None:
    """Put a record on the ingest topic at a time of the yard's clock."""
    yard.clock.at = at
    yard.cluster.publish(Outgoing(yard.catalogue.requests, None, value, partition=0))


async def read(yard: Yard, start: float = 0.0, end: float = 1e12) -> TopicTrace:
    log, tokens = MemoryLog(yard.cluster), TokenCounter({})
    return await read_topic(log, yard.catalogue, yard.fleet, yard.policy, tokens, start, end)


def job(request_id: str, **fields: object) -> bytes:
    return orjson.dumps(request(id=request_id, **fields))


async def test_a_range_becomes_a_trace_with_the_lengths_that_results_tell() -> None:
    yard = Yard()
    publish(yard, START, job("early"))
    publish(yard, START + 10, b"no json")
    publish(yard, START + 11, job("a", deadline=START + 71, session="s", tenant="acme"))
    publish(yard, START + 12, job("a"))
    publish(yard, START + 13, job("b", task="summarization"))
    publish(yard, START + 14, job("c", model="unknown"))
    publish(yard, START + 20, job("late"))
    result = Result("a", "completed", Timing(START + 11), usage=Usage(321, 45))
    yard.cluster.publish(Outgoing(yard.catalogue.results, b"a", encode(result)))
    # How far a try had come by its end says nothing of an answer's length.
    cut_off = Result("b", "cancelled", Timing(START + 13), usage=Usage(9, 2))
    yard.cluster.publish(Outgoing(yard.catalogue.results, b"b", encode(cut_off)))
    found = await read(yard, START + 10, START + 20)
    assert (len(found.arrivals), found.left_out, found.unanswered) == (2, 2, 1)
    first, second = found.arrivals
    assert (first.row, first.arrival_s, first.task) == (0, 0.0, "chat")
    assert (first.input_tokens, first.output_tokens) == (321, 45)
    assert (second.row, second.arrival_s, second.task) == (1, 2.0, "summarization")
    assert second.output_tokens == yard.policy.classes["summarization"].output_tokens
    # No text of a request is kept.
    assert all(a.request and "messages" not in a.request.body for a in found.arrivals)
    profiles = profiles_of(found.arrivals, yard.fleet, yard.policy)
    assert (profiles[0].deadline, profiles[0].session, profiles[0].tenant) == (60.0, "s", "acme")
    assert profiles[0].input_tokens == 321
    again = profiles_of(repeat(found.arrivals, 2), yard.fleet, yard.policy)[2]
    assert (again.id, again.session) == ("2", "1/s")
    assert (again.created_at, again.deadline) == (2.0, 62.0)


async def test_a_topic_goes_the_way_of_a_file() -> None:
    yard = Yard()
    for n in range(20):
        publish(yard, START + n, job(f"r{n}", hints={"output_tokens": 30}))
    found = await read(yard)
    setting = Setting(found.arrivals, yard.fleet, yard.policy, Reality())
    scored = run_one("shunter", setting, yard.options, shunter(setting, yard.options))
    assert {o.status for o in scored.run.outcomes} == {"completed"}
    assert {o.output_tokens for o in scored.run.outcomes} == {30}
    assert scored.scores["constraint_violations"] == 0


async def test_a_question_is_no_request_and_an_offer_has_its_deadline() -> None:
    """Each request of a client that asks first would count twice, from the question on."""
    yard = Yard()
    terms = QuoteTerms("0" * 32, "flex", None, 900.0, 0.99, 1, START + 60)
    publish(yard, START, job("first"))
    publish(yard, START + 1, job("asked", quote=True))
    publish(yard, START + 2, job("taken", quote=True))
    publish(yard, START + 5, job("taken", quote_id=token_of(b"secret", terms), created_at=None))
    found = await read(yard)
    assert [(a.request and a.request.id, a.arrival_s) for a in found.arrivals] == [
        ("first", 0.0),
        ("taken", 5.0),
    ]
    assert found.left_out == 0
    taken = profiles_of(found.arrivals, yard.fleet, yard.policy)[1]
    assert (taken.deadline - taken.created_at, taken.tier) == (900.0, "flex")
