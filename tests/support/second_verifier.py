"""The second verifier, run in this process."""

import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from audit_cases import Trail

from shunter.commands.audit_report import write_lines
from shunter.logs.reading import row_of

SCRIPT = Path(__file__).parents[2] / "deploy/verify_trail.py"
sys.path.insert(0, str(SCRIPT.parent))
SECOND: Any = import_module("verify_trail")
FORMATS: Any = import_module("trail_formats")
RESULTS: Any = import_module("trail_results")
PUBLIC_LOG: Any = import_module("trail_log")


def export(trail: Trail, directory: Path) -> None:
    """Write a trail as `shunter audit export` does."""
    for kind in ("evidence", "roots", "keys"):
        records = trail.cluster().records(trail.topic(kind))
        with (directory / f"{kind}.jsonl").open("wb") as file:
            take = write_lines(file)
            for record in sorted(records, key=lambda r: (r.partition, r.offset)):
                take(row_of(record))


def second_findings(
    directory: Path,
    *,
    trust: Sequence[str] = (),
    heads: Mapping[str, Any] | None = None,
    since: float = -math.inf,
    is_archive: bool = False,
) -> list[str]:
    """Return the kinds of problems that it finds in an export or an archive."""
    found: list[str] = []
    if is_archive:
        read = FORMATS.archive_reader(directory, lambda kind, *_: found.append(kind))
    else:

        def read(kind: str) -> Any:
            return FORMATS.export_lines(directory, kind)

    trail = SECOND.Trail(read, trust, heads, since)
    trail.check()
    return found + list(trail.problems)
