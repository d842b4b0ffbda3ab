"""The simulation: all seeds hold, a seed is one story, and each broken rule is caught."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation import mutants
from simulation.world import Rules, run

ROOT = Path(__file__).parent.parent.parent
# A taste: `make simulate`, which continuous integration runs too, takes 2,000.
SEEDS = 100
# Within so many seeds the checker must find a broken rule.
CAUGHT_WITHIN = 100


def simulate(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-m", "simulation", *arguments],
        env=environment | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_holds_on_every_seed() -> None:
    done = simulate("--seeds", str(SEEDS))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", [468, 5097])
def test_a_seed_that_found_a_bug_holds(seed: int) -> None:
    """468: a finished offset right at the progress; 5097: a sleeper that fences its successor."""
    assert not run(seed, Rules()).problems


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    for seed in ("3", "7", "19"):
        first, second = (simulate("--replay", seed, hash_seed=h) for h in ("1", "2"))
        assert "faults are over" in first.stdout, first.stderr
        assert first.stdout == second.stdout


BROKEN = {
    "rule 1, fencing": Rules(transactor=mutants.OwnIdEachTime),
    "rule 2, the position": Rules(transactor=mutants.BelievesThePosition),
    "rule 2, the order": Rules(transactor=mutants.AsksBeforeFencing),
    "rule 3, the critical section": Rules(transactor=mutants.NoCriticalSection),
    "rule 4, awaited sends": Rules(transactor=mutants.AwaitsNoSend),
    "rule 5, errors end the process": Rules(transactor=mutants.GoesOnAfterErrors),
    "out-of-order progress": Rules(worker=mutants.ForgetsFinished),
    "lost markers, router": Rules(mutants.NoProgress, lose_offsets_of="router"),
    "lost markers, batcher": Rules(mutants.NoProgress, lose_offsets_of="batcher"),
    "lost markers, worker": Rules(mutants.NoProgress, lose_offsets_of="worker"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_caught(rule: str) -> None:
    seed = next((s for s in range(CAUGHT_WITHIN) if run(s, BROKEN[rule]).problems), None)
    assert seed is not None, f"{rule}: not caught by seeds 0 to {CAUGHT_WITHIN - 1}"


@pytest.mark.parametrize("stage", ["router", "batcher", "worker"])
def test_lost_group_offsets_of_a_stage_double_and_lose_nothing(stage: str) -> None:
    for seed in range(20):
        assert run(seed, Rules(lose_offsets_of=stage)).problems == [], f"seed {seed}"
