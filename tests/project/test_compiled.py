"""What `deploy/compiled_build.py` compiles decides and models as plain Python does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELD = ("tests/unit/policies/test_estimate.py", "tests/unit/policies/test_accelerator.py")
WHERE = "import policies.scoring.estimate as e, policies.hardware.accelerator as a; "
PRINT = "print(e.__file__, a.__file__)"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_compiled_modules_are_the_plain_ones_to_the_last_bit(tmp_path: Path) -> None:
    for name in ("topics", "policies", "streams", "workers", "shunter", "tests", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    paths = [tmp_path, tmp_path / "tests", tmp_path / "tests" / "support"]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    run("deploy/compiled_build.py", ".")
    assert run("-c", WHERE + PRINT).count(".so") == 2
    run("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *HELD)
