"""Requests of several answers at the router: limits and budgets count each."""

from typing import Any

from stream_cases import MODEL, Yard, route

from shunter.audit.replay import replay_steps
from topics.records import headers as h

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def test_a_limit_of_cost_holds_for_all_answers_and_goes_with_them() -> None:
    yard = Yard()
    limit = {"constraints": {"max_cost_usd": 0.001}}
    yard.publish(id="one", body=CHAT, **limit)
    yard.publish(id="few", body=CHAT | {"n": 3}, **limit)
    yard.publish(id="many", body=CHAT | {"n": 1000}, **limit)
    yard.publish(id="free", body=CHAT | {"n": 1000})
    await route(yard)
    (ended,) = yard.results().values()
    assert ended.id == "many"
    assert ended.error is not None
    assert "max_cost" in (ended.error.details or {}).values()
    critical = {
        h.read_profile(record.headers).id: h.find(record.headers, h.CRITICAL)
        for record in yard.lane("premium-eu", "direct")
    }
    assert (critical["one"], critical["few"]) == (None, h.ANSWERS_FIELD)
    steps = {each.request_id: each for each in yard.evidence()}
    costs = [steps[name].promised.cost_usd for name in ("few", "free")]  # type: ignore[union-attr]
    assert costs[0] <= 0.001 < costs[1]
    assert steps["few"].profile is not None
    assert steps["few"].profile.replies == 3
    found = replay_steps(yard.evidence(), lambda _fleet, _policy: (yard.options, yard.policy))
    assert len(found) == 4
    assert not [each for each in found if each.differences]
