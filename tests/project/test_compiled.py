"""Modules that `deploy/compiled_build.py` compiles decide and model as plain Python does."""

import ast
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
MODULES: Any = import_module("compiled_build").MODULES
PACKAGES = ("topics", "policies", "streams", "workers", "gateway", "shunter", "tests", "deploy")
# Those of the accelerator put classes of their own in its place, which compiled ones don't allow.
HELD = [f"tests/unit/policies/test_{name}.py" for name in ("estimate", "replica", "roofline")]
HELD += ["tests/unit/policies/test_answering_replica.py", "tests/unit/policies/test_migration.py"]
WHERE = (
    "import policies.scoring.estimate as e, policies.hardware.accelerator as a;"
    "print(e.__file__, a.__file__)"
)
# Without baselines: they ask the same modules.
BACKTEST = ("-m", "shunter", "policy", "backtest", "--no-bound", "--no-baselines", "--json")


def run(tree: Path, *arguments: str) -> str:
    """What Python prints with the packages of this tree."""
    paths = (tree, tree / "tests", tree / "tests" / "support")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def classes(module: Path) -> list[ast.ClassDef]:
    return [each for each in ast.walk(ast.parse(module.read_text())) if type(each) is ast.ClassDef]


def test_what_extends_a_compiled_class_is_compiled_too() -> None:
    compiled = {ROOT / name for name in MODULES}
    names = {each.name for module in compiled for each in classes(module)}
    assert {"Accelerator", "Replica"} <= names
    for package in ("policies", "streams", "workers", "shunter"):
        for module in set((ROOT / package).rglob("*.py")) - compiled:
            for each in classes(module):
                bases = {base.id for base in each.bases if isinstance(base, ast.Name)}
                assert not bases & names, f"{module.relative_to(ROOT)}: {each.name}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_compiled_modules_are_the_plain_ones_to_the_last_bit(tmp_path: Path) -> None:
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # Without optimisation, which takes a minute and changes no result.
    run(tmp_path, "deploy/compiled_build.py", ".", "0")
    assert run(tmp_path, "-c", WHERE).count(".so") == 2
    run(tmp_path, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *HELD)
    for more in ((), ("--rate", "10", "--fleet-scale", "10", "--migrate")):
        assert run(tmp_path, *BACKTEST, *more) == run(ROOT, *BACKTEST, *more)
