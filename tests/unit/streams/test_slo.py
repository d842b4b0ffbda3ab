"""Requests judged by their SLO, alike by the metrics and the live view."""

import asyncio
from typing import Any

import pytest
from memory_log import MemoryLog
from metrics_cases import counted, make_metrics, read
from stream_cases import POLICY, START, Yard, drain, make_router
from worker_cases import POOL, ScriptedBackend, make_worker

from streams.evidence.slo_outcomes import outcomes
from streams.live import LiveView, snapshot_of
from streams.metrics import registry as m
from topics import Evidence, Source

LIMITED = POLICY + "tenants: {acme: {rate_per_s: 0.01}}\n"
ONE_POOL = {"pools": [POOL]}


@pytest.mark.parametrize(
    ("step", "reason", "is_missed"),
    [
        ("expired", "deadline_passed", True),
        ("failed", "timeout", True),
        ("rejected", "pool_unavailable", True),
        ("rejected", "rate_limited", False),
        ("rejected", "no_pool", False),
        ("cancelled", "cancelled", False),
    ],
)
def test_who_was_accepted_and_not_answered_has_missed(
    step: Any, reason: str, is_missed: bool
) -> None:
    evidence = Evidence("r", step, START, "test", Source("t", 0, 0), reason=reason)
    assert outcomes(evidence, None) == ({"deadline": False, "all": False} if is_missed else {})


async def test_the_metrics_and_the_live_view_judge_the_same_evidence_alike() -> None:
    yard = Yard(policy=LIMITED)
    metrics, backend = make_metrics(yard), ScriptedBackend()
    router = counted(await yard.run(make_router(yard)), metrics)
    worker = make_worker(yard, backend)
    serving = counted(await yard.run(worker, MemoryLog(yard.cluster, "a")), metrics)
    for name in ("kept", "late", "lost"):
        yard.publish(id=name, constraints=ONE_POOL)
    yard.publish(id="nowhere", constraints={"regions": ["mars"]})
    yard.publish(id="no class", task="invented")
    yard.publish(id="expired", deadline=START - 1)
    for n in range(20):
        yard.publish(id=f"acme-{n}", tenant="acme", constraints={"regions": ["mars"]})
    await drain(router)
    await drain(serving)
    await asyncio.sleep(0)
    backend.finish("kept")
    backend.finish("late", first_token_at=START + 2.5)
    backend.lose("lost", elsewhere=False)
    await asyncio.sleep(0)
    await drain(serving)
    await serving.step()
    ends = {e.reason for e in yard.evidence("rejected")}
    assert ends == {"no_pool", "rate_limited", "unknown_task"}

    view = LiveView(yard.catalogue, yard.options, yard.policy, since=START - 60)
    for record in yard.cluster.records(yard.catalogue.evidence):
        view.take(record, START + 5)
    shown = snapshot_of(view, START + 5).classes
    counts = read(metrics, m.SLO_OUTCOMES)
    told = {labels[2]: n for labels, n in counts.items() if labels[:2] == ("chat", "all")}
    assert told == {"kept": 1, "missed": 3}
    assert {labels[0] for labels in counts} == {"chat"}
    judged = {c.task: {"kept": c.kept, "missed": c.judged - c.kept} for c in shown if c.judged}
    assert judged == {"chat": told}
