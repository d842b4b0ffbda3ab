"""The cost of tries without an answer, told of requests that a router or a batcher ends."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hold_cases import hold, make_batcher, run
from stream_cases import START, Yard, make_profile, request, route

from streams.engine.log import Outgoing
from topics import Charge, Cost, Fallback, Profile, Quoted, Result, Usage, encode
from topics.records import headers as h
from topics.records.money import Spent

DEADLINE = START + 20
TRIED: dict[str, Any] = {
    "attempt": 2,
    "fallbacks": (Fallback("premium-eu", "connection_lost"),),
    "spent": Spent(40_000, 20, 3, 36.0),
}
QUOTED = Quoted("q", 30_000, 0.99)
# What is told of it: the price of its tries, and of what took a quote no more than that.
PAID = [
    (None, Cost(0.00004), None),
    (QUOTED, Cost(0.00003, quoted_usd=0.00003), Charge("q", 30_000, 40_000, 30_000)),
]


async def ended_by_router(yard: Yard, tried: Profile) -> Result:
    """Return the end of a request that came back from a pool after its deadline."""
    value = orjson.dumps(request(id="c0"))
    headers = [(h.PROFILE, encode(tried))]
    yard.cluster.publish(Outgoing(yard.catalogue.reroutes, b"c0", value, headers, 0))
    yard.clock.at = DEADLINE
    await route(yard)
    return yard.results()["c0"]


async def ended_by_batcher(yard: Yard, tried: Profile) -> Result:
    """Return the end of a request that was held for a pool until its deadline."""
    record = hold(yard, "c0", task="chat", deadline=DEADLINE)
    headers = h.replaced(record.headers, h.encoded(profile=tried))
    number = record.partition.number
    yard.cluster.publish(Outgoing(yard.catalogue.held, b"c0", record.value, headers, number))
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = DEADLINE
    await transactor.step()
    return yard.results()["c0"]


@pytest.mark.parametrize(("quote", "cost", "charge"), PAID)
@pytest.mark.parametrize("ended", [ended_by_router, ended_by_batcher])
async def test_a_request_that_ends_without_another_try_tells_what_its_tries_cost(
    ended: Any, quote: Quoted | None, cost: Cost, charge: Charge | None
) -> None:
    yard = Yard(live=[])
    profile = make_profile(yard.policy, id="c0", task="chat", deadline=DEADLINE)
    result = await ended(yard, replace(profile, quote=quote, **TRIED))
    assert (result.status, result.cost) == ("expired", cost)
    assert result.usage == Usage(20, 3)
    (evidence,) = yard.evidence("expired")
    assert evidence.charge == charge
    # The try's own evidence has told it: a sum over all steps counts it once.
    assert evidence.spent is None


@pytest.mark.parametrize("ended", [ended_by_router, ended_by_batcher])
async def test_a_request_that_was_never_tried_has_no_cost(ended: Any) -> None:
    yard = Yard(live=[])
    result = await ended(yard, make_profile(yard.policy, id="c0", task="chat", deadline=DEADLINE))
    assert (result.status, result.cost, result.usage) == ("expired", None, None)
