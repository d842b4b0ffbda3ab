"""A second policy beside the live one: what it would do is written down, and done by nobody."""

from typing import Any

import pytest
from decisions import decide_in
from hold_cases import hold
from policy_cases import POLICY as PURE_POLICY
from policy_cases import a_policy, a_situation, profile
from policy_change_cases import Office, policy
from stream_cases import POLICY, START, Yard, drain, keys

from policies import beside, decide_beside
from shunter.audit.replay import replay_steps
from shunter.shadow_report import ShadowReport
from topics import Evidence, Placement, Shadow, encode

# A summary is served at once here, and nobody outside eu-west serves a chat turn.
OTHER = POLICY.replace("window_s: 45", "window_s: 0").replace("batchable: true", "batchable: false")


async def routed(shadow: str | None, *requests: dict[str, Any]) -> Yard:
    yard = Yard()
    office = Office(yard)
    office.change(shadow=shadow)
    _, transactor = await office.router()
    for fields in requests:
        yard.publish(**fields)
    await drain(transactor)
    return yard


SUMMARY = {"id": "s1", "task": "summarization"}


async def test_what_it_would_do_is_in_the_evidence_and_is_not_done() -> None:
    yard = await routed(OTHER, SUMMARY)
    assert keys(yard.held()) == ["s1"]
    assert not yard.lane("premium-eu", "direct")
    (step,) = yard.evidence()
    assert step.policy_version == policy().version
    assert step.shadow is not None
    assert (step.shadow.policy_version, step.shadow.action) == (policy(OTHER).version, "place")
    assert (step.shadow.pool, step.shadow.model_variant) == ("premium-eu", "yard-8b-fp8")
    assert step.shadow.cost_usd is not None
    assert step.promised is not None
    assert step.shadow.cost_usd > step.promised.cost_usd


async def test_without_one_nothing_is_written_of_it() -> None:
    (step,) = (await routed(None, SUMMARY)).evidence()
    assert step.shadow is None


async def test_the_live_decision_is_the_same_with_and_without() -> None:
    requests = [{"id": f"c{n}"} for n in range(6)] + [SUMMARY]
    alone, watched = await routed(None, *requests), await routed(OTHER, *requests)

    def seen(yard: Yard) -> list[tuple[object, ...]]:
        return [(e.request_id, e.step, e.candidates, e.promised, e.reason) for e in yard.evidence()]

    assert seen(alone) == seen(watched)
    found = replay_steps(watched.evidence(), lambda *_: (watched.options, policy()))
    assert {each.differences for each in found} == {()}


async def test_a_request_that_it_could_not_serve_at_all_is_one_it_rejects() -> None:
    yard = await routed(
        POLICY.replace("data_classes:\n  regulated: {regions: [eu-west]}\n", ""),
        {"id": "r", "constraints": {"data_class": "regulated"}},
    )
    (step,) = yard.evidence()
    assert (step.step, step.placement and step.placement.region) == ("placed", "eu-west")
    assert step.shadow is not None
    assert (step.shadow.action, step.shadow.reason) == ("reject", "unknown_data_class")


async def test_it_keeps_what_it_has_seen_come_until_another_takes_its_place() -> None:
    office = Office(Yard())
    office.change(shadow=OTHER)
    first = office.active_policy.terms.shadow
    office.change(to_policy=POLICY.replace("ttft_ms: 1500", "ttft_ms: 900"), shadow=OTHER)
    second = office.active_policy.terms.shadow
    assert first is not None
    assert second is not None
    assert second.arrivals is first.arrivals
    office.change(shadow=POLICY.replace("ttft_ms: 1500", "ttft_ms: 900"))
    third = office.active_policy.terms.shadow
    assert third is not None
    assert third.arrivals is not first.arrivals
    office.change()
    assert office.active_policy.terms.shadow is None


def test_it_decides_as_it_would_alone() -> None:
    here = a_situation()
    other = a_policy(PURE_POLICY.replace("ttft_ms: 1000", "ttft_ms: 1"))
    request = profile()
    found = decide_beside(request, beside(here.options, other, here.view), request.routed_at)
    alone = decide_in(request, a_situation(policy=PURE_POLICY), request.routed_at)
    assert alone.promised is not None
    assert (found.action, found.pool) == ("place", alone.candidates[0].pool)
    assert (found.cost_usd, found.chance) == (alone.promised.cost_usd, alone.promised.chance)


def step_of(task: str, shadow: Shadow | None, *, live: str = "premium-eu") -> bytes:
    found: dict[str, Any] = {
        "step": "placed",
        "task": task,
        "candidates": [{"pool": live, "model_variant": "v"}],
        "promised": {"cost_usd": 0.003, "ttft_s": 1.0, "finish_s": 2.0, "chance": 0.99},
        "shadow": shadow,
    }
    return encode(found)


def test_regret_is_what_the_live_policy_costs_beyond_it() -> None:
    report = ShadowReport()
    same = Shadow("b", "place", "r", "premium-eu", "v", 0.003, 0.99)
    for value in (
        step_of("chat", same),
        step_of("chat", Shadow("b", "hold", "r", "boards-us", "v", 0.001, 0.97)),
        step_of("summary", Shadow("b", "reject", "no_pool")),
        step_of("summary", None),
        encode(Evidence("x", "executed", 1.0, "w", None)),  # type: ignore[arg-type]
        b"no evidence",
    ):
        report.add(value)
    chat, summary, total = (row.as_dict() for row in report.rows())
    assert (chat["task"], summary["task"], total["task"]) == ("chat", "summary", "all")
    assert (chat["decisions"], chat["differs"], chat["both_served"]) == (2, 1, 2)
    assert chat["live_usd"] == pytest.approx(0.006)
    assert chat["regret_usd"] == pytest.approx(0.002)
    assert chat["live_attainment"] == pytest.approx(0.99)
    assert chat["shadow_attainment"] == pytest.approx(0.98)
    # What would not have been served costs nothing, and is no saving.
    assert (summary["differs"], summary["both_served"], summary["regret_usd"]) == (1, 0, 0.0)
    assert summary["shadow_attainment"] == 0.0
    assert (total["decisions"], total["regret_usd"]) == (3, pytest.approx(0.002))


def test_a_class_of_the_total_s_name_is_counted_once() -> None:
    report = ShadowReport()
    shadow = Shadow("b", "place", "r", "premium-eu", "v", 0.003, 0.99)
    for task in ("all", "chat", "all", "zeta"):
        report.add(step_of(task, shadow))
    rows = [(row.task, row.decisions) for row in report.rows()]
    assert rows == [("all", 2), ("chat", 1), ("zeta", 1), ("all", 4)]


async def test_the_evidence_of_a_router_is_what_the_report_reads() -> None:
    yard = await routed(OTHER, SUMMARY, {"id": "c1"})
    report = ShadowReport()
    for record in yard.cluster.records(yard.catalogue.evidence):
        report.add(record.value or b"")
    found = {row.task: row for row in report.rows()}
    assert {task: (row.decisions, row.differs) for task, row in found.items()} == {
        "chat": (1, 0),
        "summarization": (1, 1),
        "all": (2, 1),
    }
    assert found["summarization"].regret_usd < 0


async def released(shadow: str | None) -> Yard:
    """A yard in which two summaries have waited to the end of their window."""
    yard = Yard()
    for name in ("s1", "s2"):
        hold(yard, name, held_at=START)
    office = Office(yard)
    transactor = await office.batcher()
    office.change(shadow=shadow)
    yard.clock.at += 60
    await drain(transactor)
    return yard


async def test_a_release_says_where_the_second_policy_would_send_each_member() -> None:
    yard, alone = await released(OTHER), await released(None)
    steps = yard.evidence("released")
    assert {e.request_id for e in steps} == {"s1", "s2"}
    for step in steps:
        assert step.shadow is not None
        assert step.placement is not None
        assert step.promised is not None
        assert step.shadow.policy_version == policy(OTHER).version
        where = (step.shadow.action, step.shadow.pool, step.shadow.model_variant)
        assert where == ("place", step.placement.pool, step.placement.model_variant)
        assert step.shadow.cost_usd == step.promised.cost_usd
    assert not any(step.shadow for step in alone.evidence())
    seen = [(e.request_id, e.placement, e.promised) for e in alone.evidence()]
    assert [(e.request_id, e.placement, e.promised) for e in yard.evidence()] == seen
    report = ShadowReport()
    for record in yard.cluster.records(yard.catalogue.evidence):
        report.add(record.value or b"")
    assert [(r.of, r.task, r.decisions) for r in report.rows()] == [
        ("releases", "summarization", 2),
        ("releases", "all", 2),
    ]


def test_a_release_elsewhere_differs_and_one_that_would_wait_too() -> None:
    report = ShadowReport()
    live = {
        "step": "released",
        "task": "summary",
        "placement": Placement("boards-us", "d", "v", "fp8", "us-east", "direct"),
        "promised": {"cost_usd": 0.003, "ttft_s": 1.0, "finish_s": 2.0, "chance": 0.99},
    }
    for action, pool in (("place", "boards-us"), ("place", "premium-eu"), ("hold", None)):
        said = Shadow("b", action, "r", pool, pool and "v", 0.001 if pool else None)  # type: ignore[arg-type]
        report.add(encode(live | {"shadow": said}))
    row, _ = report.rows()
    assert (row.of, row.decisions, row.differs, row.both_served) == ("releases", 3, 2, 2)
    assert row.regret_usd == pytest.approx(0.004)
