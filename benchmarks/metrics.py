"""Cost of metrics: processor time of the fold for each request, at a router and at a worker.

    python benchmarks/metrics.py

The effects are those of real stages, decided on the packaged fleet; a transaction has 100 of them.
Prints a table of Markdown: the best of five runs, one core.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from policies import Placer, Policy, compile_options, idle_view, situation, tag
from streams.config.declarations import load_fleet, load_policy
from streams.engine.log import Outgoing, Partition
from streams.engine.stage import Effect
from streams.metrics import Metrics
from topics import (
    Envelope,
    Evidence,
    Placement,
    Profile,
    Result,
    Source,
    Timing,
    Usage,
    encode,
    parse_request,
)

MEMBERS = 100
RUNS = 5
NOW = 1_800_000_000.0
TASKS = ("chat", "summarization", "embedding", "agent_step", "long_context")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def profiles(policy: Policy) -> list[Profile]:
    """Return requests of several classes and tenants."""
    found = []
    for n in range(MEMBERS):
        body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "which track?"}]}
        value = encode(
            {"id": f"r{n}", "task": TASKS[n % 5], "tenant": f"tenant-{n % 30}", "body": body}
        )
        request = parse_request(value, bytes_max=10_000)
        tagged = tag(request, policy, received_at=NOW, now=NOW, ingest_partition=0)
        found.append(tagged.profile)
    return found


def decided() -> list[Effect]:
    """Return a router's records of these requests."""
    options, policy = compile_options(load_fleet(None)), load_policy(None)
    state = situation(options, policy)
    for pool in options.by_pool:
        for report in idle_view(options, NOW).reports(pool):
            state.view.report(report)
    effects = []
    for profile in profiles(policy):
        decision = Placer(state).decide(profile, NOW).decision
        placement = None
        if decision.option is not None:
            o = decision.option
            placement = Placement(o.pool, o.device, o.variant, o.precision, o.region, "direct")
        evidence = Evidence(
            profile.id,
            "placed" if placement else "held",
            NOW,
            "router",
            Source("requests", 0, 1),
            tenant=profile.tenant,
            task=profile.task,
            candidates=tuple(decision.candidates),
            placement=placement,
            promised=decision.promised,
            profile=profile,
            reason=decision.reason,
        )
        effects.append(Effect(None, [Outgoing("lane", b"", b""), told(evidence)]))
    return effects


def executed() -> list[Effect]:
    """Return a worker's records of these requests; the subject is the profile."""
    effects = []
    for n, profile in enumerate(profiles(load_policy(None))):
        placement = Placement("premium-eu", "h200", "llama-fp8", "fp8", "eu-west", "direct")
        evidence = Evidence(
            profile.id,
            "executed",
            NOW,
            "worker",
            Source("lane", 0, n),
            tenant=profile.tenant,
            task=profile.task,
            trace_id=TRACE_ID,
            placement=placement,
            promised=Envelope(0.001, 0.3, 4.0, 0.03, 0.93),
            got=Envelope(0.0009, 0.2 + n / 100, 3.0, 0.02),
            usage=Usage(300 + n, 200),
        )
        timing = Timing(NOW, started_at=NOW, finished_at=NOW + 3)
        result = Result(profile.id, "completed", timing, placement=placement)
        effects.append(Effect(None, [told(result), told(evidence)], subject=profile))
    return effects


def told(record: Evidence | Result) -> Outgoing:
    """Return a record of which only what it says is looked at."""
    return Outgoing("topic", b"", b"", payload=record)


def profile_of(effect: Effect) -> Profile | None:
    """Return the request of an effect of ours."""
    return effect.subject if isinstance(effect.subject, Profile) else None


def cost_us(effects: Sequence[Effect], transactions: int = 300) -> float:
    """Return the microseconds for each request."""
    metrics = Metrics(
        compile_options(load_fleet(None)), load_policy(None), tenants_max=20, profile_of=profile_of
    )
    best = float("inf")
    for _ in range(RUNS):
        start = time.process_time()
        for _ in range(transactions):
            metrics.observer(Partition("topic", 0), effects)
        best = min(best, time.process_time() - start)
    if b"shunter_steps_total" not in metrics.page("")[1]:
        raise SystemExit("nothing was counted")
    return best / transactions / len(effects) * 1e6


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| counted | a request |")
    print("| --- | --: |")
    print(f"| a decision, at a router | {cost_us(decided()):.1f} µs |")
    print(f"| an execution, at a worker | {cost_us(executed()):.1f} µs |")
