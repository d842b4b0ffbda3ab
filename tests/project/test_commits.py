"""Subjects of commits: fewer than 72 characters, held by a hook and looked at afterwards."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SUBJECT_CHARACTERS_MAX = 71
# Those of before this were made without the hook, and stay as they are.
SINCE = "2026-11-29T06:00:00Z"


def hook() -> dict[str, Any]:
    """The hook of the subject, as pre-commit is told of it."""
    told = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert "commit-msg" in told["default_install_hook_types"]
    (found,) = [each for each in told["repos"][0]["hooks"] if each["id"] == "commit-subject"]
    return dict(found)


@pytest.mark.parametrize(
    ("message", "is_refused"),
    [
        ("s" * SUBJECT_CHARACTERS_MAX, False),
        ("s" * (SUBJECT_CHARACTERS_MAX + 1), True),
        ("short\n\n" + "a body may have long lines " * 10, False),
        ("s" * (SUBJECT_CHARACTERS_MAX + 1) + "\n\nbody", True),
    ],
)
def test_the_hook_refuses_a_long_subject_alone(message: str, *, is_refused: bool) -> None:
    told = hook()
    assert (told["language"], told["stages"], told["args"]) == (
        "pygrep",
        ["commit-msg"],
        ["--multiline"],
    )
    # As pre-commit's pygrep searches a whole file.
    found = re.search(told["entry"].encode(), message.encode(), re.MULTILINE | re.DOTALL)
    assert (found is not None) is is_refused


def test_no_new_commit_has_a_long_subject() -> None:
    """Of what this checkout has: a shallow one has few, and an archive has none."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    asked = ["git", "-C", str(ROOT), "log", "--no-merges", f"--since={SINCE}", "--format=%s"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"git does not tell: {found.stderr.strip()}")
    long = [s for s in found.stdout.splitlines() if len(s) > SUBJECT_CHARACTERS_MAX]
    assert not long, "reword with `git rebase -i`: " + "; ".join(long)
