"""What a demo prints fits a terminal of 80 columns."""

import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from shunter.demo.check import Verdict
from shunter.demo.ledger import Ledger
from shunter.demo.report import report
from shunter.demo.run import Outcome
from shunter.demo.show import Lines
from shunter.demo.summary import summarize
from shunter.demo.trace import load_rows
from shunter.demo.view import View, saving
from shunter.demo.watch import PoolWatch, Watch, WindowWatch
from streams.declarations import load_fleet, load_policy
from topics import (
    Batch,
    Catalogue,
    Cost,
    Evidence,
    Placement,
    PoolStatus,
    Result,
    Settings,
    Source,
    Timing,
    Usage,
)

FLEET, POLICY = load_fleet(None), load_policy(None)


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, height=50, force_terminal=True, no_color=True)


def printed(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def outcome(verdict: Verdict) -> Outcome:
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
    trail = {"records": 20, "roots": 5, "chains": 2, "problems": {}}
    figures |= {"wall_s": 60.0, "restarts": 0, "trail": trail}
    return Outcome(figures, ledger, Settings(), Path("run"), verdict.is_good)


@pytest.mark.parametrize("kept", [True, False])
def test_the_report_has_classes_pools_a_story_and_how_to_go_on(kept):
    on = console(80)
    on.print(report(outcome(Verdict(0, 0, 0, 0, 0)), kept=kept))
    text = printed(on)
    assert "2,000 requests in, 2,000 results out: none lost" in text
    for name in [*FLEET.pools, *POLICY.classes, "One that was served at once", "How to go on"]:
        assert name in text
    assert "…" not in text
    assert ("export SHUNTER_BOOTSTRAP_SERVERS=127.0.0.1:9092" in text) is kept


def test_the_report_says_what_went_wrong():
    on = console(80)
    on.print(report(outcome(Verdict(1, 0, 0, 0, 0, ["1 without a result: demo-7"])), kept=False))
    assert "1 without a result: demo-7" in printed(on)
    assert "none lost" not in printed(on)


def watch() -> Watch:
    pools = {}
    for name, pool in FLEET.pools.items():
        status = PoolStatus(name, "w", 1.0, "up", 1.0, pool.device, pool.region, 640, 100, 100, 0.0)
        pools[name] = PoolWatch(status, 1000, 1000, 0.1234)
    pools["cpu-eu"].status = None
    found = Watch(Catalogue(Settings()), {}, 2000, pools)
    found.windows["synthetic_data"] = WindowWatch(held=499, batches=3, released=300)
    found.cost_usd, found.cost_all_premium_usd = 0.6, 0.9
    return found


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_shows_all_of_it_at(width):
    on = console(width)
    with View(on, FLEET, POLICY) as view:
        view.update(watch())
        view.say("a worker was started again")
    text = printed(on)
    for shown in ["published", "silicon-us", "crescent-island", "synthetic_data", "499", "100.0"]:
        assert shown in text
    assert "33% less" in text
    assert "starts" in text
    assert "a worker was started again" in text
    assert "…" not in text


def test_without_a_terminal_there_is_a_line_now_and_then():
    on = console(200)
    with Lines(on) as lines:
        lines.update(watch())
        lines.update(watch())
    assert printed(on).count("waiting for a batch") == 1


def test_a_saving_is_told_in_words():
    assert saving(0.5, 1.0) == "50% less"
    assert saving(1.5, 1.0) == "50% more"
    assert saving(1.0, 0.0) == ""
