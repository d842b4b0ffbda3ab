"""What a walk through forgeries stands on: an installation, both verifiers, and a table."""

import copy
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from running_system import FLEET, ROOT, System

# Its worker dies, so that a request that it had never ends.
LEAVING = "leaving-eu"


class Walk:
    """A directory with all that is kept between steps."""

    def __init__(self, directory: Path, servers: str, matching: re.Pattern[str]) -> None:
        self.directory = directory
        self.servers, self.matching = servers, matching
        self.rows: list[tuple[str, str, str]] = []
        self.missed = 0
        self.archive, self.heads = directory / "archive", directory / "heads.json"
        self.state = directory / "state.json"

    @property
    def trust(self) -> str:
        """The fingerprint of the installation key."""
        return str(json.loads(self.state.read_text())["trust"])

    def system(self, prefix: str = "walk") -> System:
        """The processes of an installation, not started yet."""
        fleet = copy.deepcopy(FLEET)
        fleet["pools"][LEAVING] = copy.deepcopy(FLEET["pools"]["premium-eu"])
        home = self.directory / prefix
        home.mkdir(exist_ok=True)
        introducer = {"SHUNTER_EVIDENCE_INTRODUCER": str(home / "hosts.pem")}
        env = introducer | {"SHUNTER_EVIDENCE_HEADS_S": "1"}
        return System(self.servers, prefix, home, fleet, env)

    def shunter(self, *words: object, prefix: str = "walk", code: int | None = 0) -> Any:
        """Run a command as a process of its own."""
        env = {
            "SHUNTER_BOOTSTRAP_SERVERS": self.servers,
            "SHUNTER_TOPIC_PREFIX": prefix,
            "SHUNTER_ARCHIVE_ROWS_MAX": "25",
            "COLUMNS": "200",
        }
        return self._run(["-m", "shunter", *map(str, words)], env, code)

    def second(self, *words: object) -> Any:
        """Run the second verifier."""
        return self._run([str(ROOT / "deploy/verify_trail.py"), *map(str, words)], {}, None)

    def _run(self, words: list[str], env: dict[str, str], code: int | None) -> Any:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
            capture_output=True,
            text=True,
            check=False,
        )
        if code is not None and done.returncode != code:
            raise SystemExit(f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def first_says(self, *words: object, prefix: str = "walk") -> str:
        """What `shunter audit verify` finds: exit code and kinds."""
        done = self.shunter("audit", "verify", "--json", *words, prefix=prefix, code=None)
        try:
            told = json.loads(done.stdout)["counts"]
        except ValueError:
            told = {"refused: " + done.stderr.strip()[:160]: 1}
        return f"exit {done.returncode}: {_kinds(told)}"

    def second_says(self, *words: object) -> str:
        """What `deploy/verify_trail.py` finds."""
        done = self.second(*words)
        found = re.findall(r"^([a-z_]+): ", done.stdout, re.MULTILINE)
        if done.stderr:
            found.append("refused: " + done.stderr.strip().splitlines()[-1][:160])
        return f"exit {done.returncode}: {_kinds(Counter(found))}"

    def tell(
        self, name: str, first: str, second: str, *, caught: bool = True, kind: str = ""
    ) -> None:
        """Write a row; both must have flagged it, with that kind, or neither of them."""
        self.rows.append((name, first, second))
        found = [each for each in (first, second) if "exit 1: " in each and kind in each]
        is_right = len(found) == (2 if caught else 0)
        self.missed += not is_right
        print(f"| {name} | {first} | {second} |{'' if is_right else ' <- NOT AS IT SHOULD BE'}")
        sys.stdout.flush()


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) or "nothing"
