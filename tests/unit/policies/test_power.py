"""Power: what devices and hosts draw, what a request takes of it, and limits that hold."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import NOW, PROPERTY, a_policy, profile, status

from policies import DeclarationError, FleetView, decide, inputs_of, parse_fleet, situation
from policies.config.options import Options, compile_options
from policies.fleet_state.power import drawn_kw
from policies.placement.placer import Placer
from topics import PoolStatus, VariantStatus

DEVICE = {
    "kind": "premium_gpu",
    "memory_gb": 80,
    "memory_bandwidth_tb_s": 3.35,
    "tflops": {"bf16": 989},
    "usd_per_hour": 3.0,
    "power_w": 700,
    "idle_power_w": 100,
    "host_power_w": 300,
    "host_idle_power_w": 200,
}
MODEL = {
    "parameters_b": 1, "layers": 16, "kv_heads": 4, "head_dim": 64, "context_tokens": 8192,
}  # fmt: skip
SERVES = [{"model": "m", "variant": "m-bf16", "precision": "bf16", "max_batch": 8}]


def options(device: dict[str, Any] | None = None, **pools: dict[str, Any]) -> Options:
    usual = {"device": "gpu", "count": 2, "region": "here", "serves": SERVES}
    fleet = {
        "devices": {"gpu": DEVICE if device is None else device},
        "models": {"m": MODEL},
        "pools": {name: usual | own for name, own in pools.items()},
        "sites": {"hall": {"power_kw_max": 3.0}},
    }
    return compile_options(parse_fleet(orjson.dumps(fleet).decode(), "fleet"))


def heartbeat(found: Options, pool: str) -> PoolStatus:
    """One of an idle worker as the fleet declares it."""
    declared = found.by_pool[pool][0]
    return status(pool, device=declared.device, region=declared.region)


def chosen(found: Options, view: FleetView) -> tuple[str, str, str | None]:
    here = replace(situation(found, a_policy()), view=view)
    asked = profile(model="m", batchable=False)
    decision = decide(asked, inputs_of(asked, here, NOW), found, here.policy, NOW)
    pool = None if decision.option is None else decision.option.pool
    return decision.action, decision.reason, pool


def test_what_is_not_declared_is_by_rule_and_says_so() -> None:
    by_rule = {k: v for k, v in DEVICE.items() if not k.startswith(("idle", "host"))}
    declared, assumed, unknown, cpu = (
        parse_fleet(
            orjson.dumps(
                {
                    "devices": {"gpu": device},
                    "models": {"m": MODEL},
                    "pools": {"a": {"device": "gpu", "count": 1, "region": "x", "serves": SERVES}},
                }
            ).decode(),
            "fleet",
        ).devices["gpu"]
        for device in (
            DEVICE,
            by_rule,
            {k: v for k, v in by_rule.items() if k != "power_w"},
            by_rule | {"kind": "cpu"},
        )
    )
    assert (declared.busy_w, declared.idle_w) == (1000, 300)
    assert (assumed.busy_w, assumed.idle_w) == (1050, 315)
    assert (unknown.busy_w, unknown.idle_w) == (None, None)
    assert (cpu.busy_w, cpu.idle_w) == (700, 105)


def test_a_pool_takes_no_request_beyond_its_limit_until_power_is_free_again() -> None:
    # Two replicas of 1.0 kW busy and 0.3 idle.
    found = options(a={"power_kw_max": 1.5})
    view = FleetView(found)
    view.report(heartbeat(found, "a"))
    assert chosen(found, view) == ("place", "only_candidate", "a")
    view.add_sent(found.by_pool["a"][0], 0.01)
    assert drawn_kw(found.by_pool["a"][0], view.load("a")) == pytest.approx(1.3)
    assert chosen(found, view) == ("hold", "power_limit", None)
    view.report(heartbeat(found, "a"))
    assert chosen(found, view)[0] == "place"


def test_a_heartbeat_that_lacks_what_was_just_sent_frees_no_power() -> None:
    found = options(a={"power_kw_max": 1.5})
    view, idle = FleetView(found), heartbeat(found, "a")
    view.report(replace(idle, at=NOW))
    view.add_sent(found.by_pool["a"][0], 0.01, now=NOW + 0.3)
    # Its worker had not read the request yet when it told that nothing runs.
    view.report(replace(idle, at=NOW + 0.5))
    assert chosen(found, view) == ("hold", "power_limit", None)
    view.report(replace(idle, at=NOW + 3.0))
    assert chosen(found, view)[0] == "place"


def test_a_site_bounds_what_its_pools_draw_together() -> None:
    found = options(a={"site": "hall"}, b={"site": "hall", "region": "there"}, c={})
    view = FleetView(found)
    for name in "abc":
        view.report(heartbeat(found, name))
    # 4 x 0.3 idle, and 0.7 more for each busy one: two more are within 3.0 kW, a third is not.
    for _ in range(2):
        assert not view.load("b").lacks_power(found.by_pool["b"][0])
        view.add_sent(found.by_pool["a"][0], 0.01)
    assert view.load("b").lacks_power(found.by_pool["b"][0])
    assert view.load("c").power_kw is None
    here = replace(situation(found, a_policy()), view=view)
    asked = profile(model="m", batchable=False)
    decision = decide(asked, inputs_of(asked, here, NOW), found, here.policy, NOW)
    # Both replicas of the first are busy: another request there draws nothing more.
    assert {c.pool: c.refused for c in decision.candidates} == {
        "a": None, "b": "power_limit", "c": None,
    }  # fmt: skip


@pytest.mark.parametrize("told", [{"device": "other"}, {"state": "draining"}])
def test_workers_that_get_no_work_draw_what_they_run(told: dict[str, Any]) -> None:
    found = options(a={"site": "hall"}, b={"site": "hall"})
    view = FleetView(found)
    running = {"m-bf16": VariantStatus(running=1, queued=1)}
    view.report(replace(heartbeat(found, "b"), region="here"))
    told = {"running": 1, "queued": 1} | told
    view.report(replace(heartbeat(found, "a"), variants=running, running=1, queued=1))
    # Both of a's are busy, and one of b's would be.
    assert view.load("b").power_kw == (pytest.approx(1.3), pytest.approx(3.3))
    view.report(replace(heartbeat(found, "a"), variants=running, **told))
    assert not view.load("a").workers
    assert view.load("b").power_kw == (pytest.approx(1.3), pytest.approx(3.3))
    assert view.load("b").lacks_power(found.by_pool["b"][0])
    # What was sent to it meanwhile draws as well.
    told |= {"running": 0, "queued": 0}
    view.report(replace(heartbeat(found, "a"), variants={}))
    view.add_sent(found.by_pool["a"][0], 0.01, now=NOW + 0.5)
    view.report(replace(heartbeat(found, "a"), at=NOW + 0.6, **told))
    assert view.load("b").power_kw == (pytest.approx(1.3), pytest.approx(2.6))
    view.prune(NOW + 3600)
    view.report(replace(heartbeat(found, "b"), at=NOW + 3600))
    assert view.load("b").power_kw == (pytest.approx(1.3), pytest.approx(1.3))


ANSWERS = st.lists(st.integers(1, 200), max_size=12)


@PROPERTY
@given(ANSWERS, ANSWERS, st.lists(st.integers(0, 5), min_size=24, max_size=24))
def test_what_is_drawn_is_bounded_by_requests_wherever_they_are_not_by_their_answers(
    running: list[int], sent: list[int], places: list[int]
) -> None:
    found = options(a={"count": 6, "power_kw_max": 6.0, "serves": [SERVES[0] | {"max_batch": 64}]})
    view, option = FleetView(found), found.by_pool["a"][0]
    variants = {"m-bf16": VariantStatus(running=sum(running))}
    view.report(replace(heartbeat(found, "a"), variants=variants, running=len(running)))
    for answers in sent:
        view.add_sent(option, 0.01, answers)
    told_kw = drawn_kw(option, view.load("a"))
    # Likewise the members of one batch, which go together.
    batched = FleetView(found)
    batched.report(heartbeat(found, "a"))
    batched.add_sent(option, 0.01, sum(running + sent), requests=len(running + sent))
    assert drawn_kw(option, batched.load("a")) == told_kw
    # Of 1.0 kW busy and 0.3 idle, each request on any replica, with all of its answers.
    busy = len({places[n] for n in range(len(running) + len(sent))})
    assert told_kw > 6 * 0.3 + busy * 0.7 - 1e-9
    assert told_kw == pytest.approx(6 * 0.3 + min(6, len(running) + len(sent)) * 0.7)


def test_one_request_of_many_answers_closes_no_site() -> None:
    found = options(a={"count": 4, "power_kw_max": 3.0})
    view = FleetView(found)
    view.report(heartbeat(found, "a"))
    here = replace(situation(found, a_policy()), view=view)
    placer = Placer(here)
    asked = profile(model="m", batchable=False, replies=8)
    decision = placer.decide(asked, NOW).decision
    placer.count_placed(asked, decision, NOW)
    # One replica is busy with it: 1.0 + 3 x 0.3 kW, and another would be within the limit.
    assert view.load("a").power_kw == (pytest.approx(2.6), pytest.approx(2.6))
    assert chosen(found, view) == ("place", "only_candidate", "a")
    # Its worker tells of it, shortly and long after it was sent.
    variants = {"m-bf16": VariantStatus(running=8)}
    for at, more_kw in ((NOW + 0.1, 3.3), (NOW + 3.0, 2.6)):
        view.report(replace(heartbeat(found, "a"), at=at, variants=variants, running=1))
        assert view.load("a").power_kw == (pytest.approx(more_kw), pytest.approx(more_kw))


def test_what_the_limit_was_held_against_is_among_the_recorded_inputs() -> None:
    found = options(a={"power_kw_max": 1.5})
    view = FleetView(found)
    view.report(heartbeat(found, "a"))
    view.add_sent(found.by_pool["a"][0], 0.01)
    here = replace(situation(found, a_policy()), view=view)
    inputs = inputs_of(profile(model="m"), here, NOW)
    assert inputs.loads["a"].power_kw == (2.0, 2.0)


@pytest.mark.parametrize(
    ("device", "pool", "says"),
    [
        (DEVICE, {"site": "hal"}, "did you mean hall"),
        ({k: v for k, v in DEVICE.items() if k != "power_w"}, {"site": "hall"}, "no power_w"),
        (DEVICE, {"power_kw_max": 0}, "greater than 0"),
    ],
)
def test_a_limit_that_can_not_be_kept_is_no_declaration(
    device: dict[str, Any], pool: dict[str, Any], says: str
) -> None:
    with pytest.raises(DeclarationError, match=says):
        options(device, a=pool)
