"""What a request that expires in the hold is told of its wait."""

from dataclasses import replace
from typing import Any

import pytest
from hold_cases import hold, make_batcher, run
from stream_cases import START, Yard, heartbeat, make_profile

from policies import Expelled, Member, Placer, decide, inputs_of
from policies.batching.groups import group_in
from streams.batcher.expulsion import given_up
from topics import Profile, Result, VariantStatus

DEADLINE = START + 30
LANE = "has no lane for this kind of work"


def expiry(yard: Yard, request_id: str) -> Result:
    """Return the result of an expired request, whose evidence says the same."""
    result = yard.results()[request_id]
    assert result.error is not None
    assert (result.status, result.error.code) == ("expired", "deadline_passed")
    (evidence,) = yard.evidence("expired")
    assert evidence.message == result.error.message
    return result


async def test_a_request_that_expires_says_what_kept_each_pool() -> None:
    yard = Yard(live=[])
    batcher, failing = make_batcher(yard), "premium-eu"
    variants = {o.variant: VariantStatus(circuit="open") for o in yard.options.by_pool[failing]}
    hold(yard, "c0", task="chat", deadline=DEADLINE)
    transactor = await run(yard, batcher)
    view = batcher._situation.view
    yard.clock.at = DEADLINE - 1
    view.report(heartbeat(yard.options, failing, yard.clock.at, variants=variants))
    await transactor.step()
    yard.clock.at = DEADLINE
    await transactor.step()
    error = expiry(yard, "c0").error
    assert error is not None
    assert error.details == {
        "premium-us": "pool_unavailable",
        "premium-eu": "circuit_open",
        "boards-us": "lane",
    }
    assert error.message == (
        "the deadline passed while the request waited: premium-eu fails, and gets no work until it "
        f"answers a probe; premium-us has no live worker; boards-us {LANE}"
    )


async def test_constraints_that_left_one_pool_are_told_beside_what_it_lacked() -> None:
    yard = Yard(live=["premium-us", "boards-us"])
    only = {"regions": ["eu-west"]}
    hold(yard, "c0", task="chat", deadline=DEADLINE, constraints=only)
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = DEADLINE
    await transactor.step()
    error = expiry(yard, "c0").error
    assert error is not None
    assert error.details == {
        "premium-us": "region",
        "premium-eu": "pool_unavailable",
        "boards-us": "region",
    }


async def test_one_whose_batch_had_not_come_says_which_pool_it_was_for() -> None:
    yard = Yard()
    hold(yard, "s0", deadline=START + 600)
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    await transactor.step()
    assert batcher.sizes()
    # The process slept over the last moment to release it.
    yard.clock.at = START + 600
    for pool in yard.options.by_pool:
        batcher._situation.view.report(heartbeat(yard.options, pool, yard.clock.at))
    await transactor.step()
    error = expiry(yard, "s0").error
    assert error is not None
    assert error.message.endswith("boards-us was to take it, and its batch had not come")
    assert error.details is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"is_crowded": True}, "boards-us had no room for its batch"),
        (
            {"wait_until": START + 3600},
            "boards-us was to take it at a cheaper hour, 2027-01-15T09:",
        ),
        ({"wait_until": START - 1}, "boards-us was to take it, and its batch had not come"),
        ({"path": "direct"}, "boards-us was to take it, and its turn had not come"),
    ],
)
async def test_room_an_hour_and_a_turn_are_told_as_what_was_awaited(
    changes: dict[str, Any], told: str
) -> None:
    yard = Yard()
    placer = Placer(yard.situation())
    waiting = Member(make_profile(yard.policy, id="s0", task="summarization"), "group", START, 0)
    target = placer.target([waiting], START)
    assert target is not None
    end = Expelled(waiting, "deadline_passed", replace(target, **changes))
    found = given_up(end, placer, START)
    assert found.message.startswith(f"the deadline passed while the request waited: {told}")
    assert found.why == {}


async def test_a_successor_says_which_pools_would_take_what_expired_before_it() -> None:
    yard = Yard(live=["premium-us"])
    hold(yard, "c0", task="chat", deadline=DEADLINE)
    yard.clock.at = DEADLINE + 5
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    batcher._situation.view.report(heartbeat(yard.options, "premium-us", yard.clock.at))
    await transactor.step()
    error = expiry(yard, "c0").error
    assert error is not None
    assert ": premium-us would take it now; premium-eu has no live worker; " in error.message


async def test_a_request_expires_though_nobody_can_say_what_kept_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_placer: Placer, _profile: Profile, _now: float) -> dict[str, str]:
        raise RuntimeError("an extension")

    monkeypatch.setattr(Placer, "refusals", fail)
    yard = Yard(live=[])
    hold(yard, "c0", task="chat", deadline=DEADLINE)
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = DEADLINE
    await transactor.step()
    error = expiry(yard, "c0").error
    assert error is not None
    assert "what kept it is not known" in error.message
    assert not yard.dead_letters()


@pytest.mark.parametrize(
    ("live", "code"),
    [
        (("premium-us", "premium-eu", "boards-us"), "no_pool"),
        (("premium-us", "boards-us"), "pool_unavailable"),
    ],
)
async def test_one_whose_company_did_not_come_was_too_dear_alone(
    live: tuple[str, ...], code: str
) -> None:
    yard = Yard(live=live)
    here = yard.situation()
    asked = make_profile(yard.policy, id="s0", task="summarization", deadline=START + 3000)
    seen = [START - 20 + n / 20 for n in range(400)]
    group = group_in(asked, here.options, here.policy)
    for at in seen:
        here.arrivals.observe(group, at)
    together = decide(asked, inputs_of(asked, here, START), here.options, here.policy, START)
    assert together.promised is not None
    limit_usd = 1.2 * together.promised.cost_usd
    limited = replace(asked, max_cost_usd=limit_usd)
    group = group_in(limited, here.options, here.policy)
    for at in seen:
        here.arrivals.observe(group, at)
    # With company it would be within its limit, and is held for that.
    found = decide(limited, inputs_of(limited, here, START), here.options, here.policy, START)
    assert (found.action, found.candidates[0].path) == ("hold", "hold")
    hold(yard, "s0", deadline=START + 3000, constraints={"max_cost_usd": limit_usd})
    batcher = make_batcher(yard)
    transactor = await run(yard, batcher)
    for passed_s in range(0, int(asked.longest_wait_s) + 10, 5):
        yard.clock.at = START + passed_s
        for pool in live:
            batcher._situation.view.report(heartbeat(yard.options, pool, yard.clock.at))
        await transactor.step()
    result = yard.results()["s0"]
    assert result.error is not None
    assert (result.status, result.error.code) == ("rejected", code)
    told = dict.fromkeys(live, "max_cost")
    assert result.error.details == {"premium-eu": "pool_unavailable"} | told
    assert "boards-us would cost more than constraints.max_cost_usd" in result.error.message
    (evidence,) = yard.evidence("rejected")
    assert (evidence.reason, evidence.message) == (code, result.error.message)
