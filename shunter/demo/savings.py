"""The savings report at the end of a demo, made by the command that anybody has."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from shunter.demo.system import variables
from topics import Settings

COMMAND = ("report", "savings")
ONLY = ("shunter_premium", "round_robin", "without_waiting")
"""The replays that a demo has the time for; the command makes all."""
TOOK_S_MAX = 120.0


def savings_of(settings: Settings, since: float, page: Path) -> dict[str, Any] | None:
    """Return the report of what ended since, and write its page.

    Args:
        settings: of the demo's system.
        since: epoch seconds.
        page: to write.

    Returns:
        None if it could not be made: a demo has been what it was without it.
    """
    only = (text for name in ONLY for text in ("--only", name))
    begin = datetime.fromtimestamp(since, UTC).isoformat()
    asked = ("--from", begin, *only, "--no-bound", "--output", str(page), "--json")
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            (sys.executable, "-m", "shunter", *COMMAND, *asked),
            env=os.environ | variables(settings),
            capture_output=True,
            timeout=TOOK_S_MAX,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def short(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a report that a demo tells."""
    kept = ("cost_usd", "saved_usd", "slo_attainment", "unanswered")
    return {
        "paid_usd": found["paid"]["total"]["paid_usd"],
        "replayed": found["replayed"],
        "policies": {
            name: {field: each[field] for field in kept} for name, each in found["policies"].items()
        },
    }
