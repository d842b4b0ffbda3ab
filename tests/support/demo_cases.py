"""The outcome of a demo that never ran, and consoles to print it on."""

import io
from collections import Counter
from pathlib import Path

from rich.console import Console

from shunter.demo.check import Verdict
from shunter.demo.ledger import Ledger
from shunter.demo.run import DemoOutcome
from shunter.demo.summary import summarize
from shunter.demo.trace import load_rows
from streams.config.declarations import load_fleet, load_policy
from topics import Batch, Cost, Evidence, Placement, Result, Settings, Source, Timing, Usage

FLEET, POLICY = load_fleet(None), load_policy(None)


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, height=50, force_terminal=True, no_color=True)


def printed(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def outcome(verdict: Verdict) -> DemoOutcome:
    rows = load_rows()
    results, evidence = {}, {}
    for row in rows:
        path = "batch" if row.task == "summarization" else "direct"
        placement = Placement("silicon-us", "maia-200", "v", "fp8", "us-east", path)  # type: ignore[arg-type]
        batch = Batch("1-2", row.number, 2) if path == "batch" else None
        evidence[row.id] = [
            Evidence(row.id, step, 1.0, "w", Source("t", 0, 0), task=row.task, batch=batch)  # type: ignore[arg-type]
            for step in ("placed", "executed")
        ]
        results[row.id] = Result(
            row.id,
            "completed",
            Timing(1.0, 1.0, None, 1.1, 1.2, 1.3),
            placement=placement,
            usage=Usage(10, 10),
            cost=Cost(0.0001),
        )
    ledger = Ledger(results, Counter(results), evidence)
    figures = summarize(
        rows,
        ledger,
        verdict,
        POLICY,
        dict.fromkeys(results, 0.001),
        pools=list(FLEET.pools),
        speed=4.0,
    )
    trail = {"records": 20, "roots": 5, "chains": 2, "problems": {}, "trusted": "0f3c5ad1" * 4}
    machine = {"burst": 240, "took_s": 0.6, "per_s": 400.0, "expected_attainment": 0.996}
    figures |= {"wall_s": 60.0, "restarts": 0, "trail": trail, "machine": machine}
    page = "http://127.0.0.1:12345/"
    return DemoOutcome(figures, ledger, Settings(), Path("run"), verdict.is_good, page=page)
