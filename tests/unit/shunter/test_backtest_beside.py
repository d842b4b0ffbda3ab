"""Runs of a backtest are the same beside each other as one after the other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shunter.backtest import parallel_runs

ROOT = Path(__file__).parents[3]
# In a process of its own, since the tests' own has threads, with which none is forked.
COMPARED = """
from backtest_cases import setting
from shunter.backtest import parallel_runs
from shunter.backtest.suite import ScoredRun, plans

parallel_runs.cores = lambda: 2
planned = plans(setting(120), with_baselines=True)
assert parallel_runs.can_fork()
beside = [each for each, _ in parallel_runs.scored_beside(planned, 1)]
alone = [each for each, _ in parallel_runs.whole_runs(planned)]
assert [type(each) is ScoredRun for each in beside] == [True] + [False] * (len(planned) - 1)
assert [(e.name, e.scores) for e in beside] == [(e.name, e.scores) for e in alone]
assert beside[0].run.outcomes == alone[0].run.outcomes
print(len(beside))
"""


@pytest.mark.slow
def test_runs_made_side_by_side_are_the_same() -> None:
    paths = (ROOT, ROOT / "tests", ROOT / "tests" / "support")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", COMPARED]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr


def test_one_core_makes_all_runs_itself() -> None:
    before, parallel_runs.cores = parallel_runs.cores, lambda: 1
    try:
        assert not parallel_runs.can_fork()
    finally:
        parallel_runs.cores = before
