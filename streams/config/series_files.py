"""Files of series and time zones, which a fleet's file names beside itself.

Both are written into the declaration when the file is read. So its version tells them, evidence
that names the version can be replayed with no file at hand, and processes whose machines know
other time zone data decide alike.
"""

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from policies.config.schema import DeclarationError, Problem
from policies.config.series import STEPS_MAX

# Between these years the changes of a zone's clocks are written down.
FIRST_YEAR, LAST_YEAR = 2015, 2045
_QUARTER, _DAY = timedelta(minutes=15), timedelta(days=1)


def completing(file: str, folder: Path | None) -> Callable[[dict[str, Any]], None]:
    """Return a function that fills in what the series of a fleet's mapping name.

    Args:
        file: the fleet's file, for errors.
        folder: where the files of series are; None: they can't be read, as of standard input.

    Returns:
        It raises DeclarationError, naming field and value of what can't be read.
    """

    def complete(mapping: dict[str, Any]) -> None:
        declared = mapping.get("series")
        if not isinstance(declared, dict):
            return
        completed = {}
        for name, series in declared.items():
            found = series
            if isinstance(series, dict):
                found = _with_steps(series, f"series.{name}", file, folder)
                found = _with_epochs(found, f"series.{name}", file)
                found = _with_offsets(found, f"series.{name}", file)
            completed[name] = found
        mapping["series"] = completed

    return complete


def _with_steps(
    series: dict[str, Any], where: str, file: str, folder: Path | None
) -> dict[str, Any]:
    name, column = series.get("file"), series.get("column", "value")
    if not isinstance(name, str):
        return series
    if folder is None:
        message = "a fleet that is read from standard input can name no files"
        raise DeclarationError([Problem(file, f"{where}.file", name, message)])
    try:
        # Spreadsheets begin a file with a byte order mark.
        with (folder / name).open(encoding="utf-8-sig", newline="") as lines:
            rows = zip(range(STEPS_MAX + 1), csv.DictReader(lines), strict=False)
            steps = [_step(number, row, column) for number, row in rows]
        _check_order(steps)
    except KeyError as error:
        message = f"has no column {error.args[0]}"
        raise DeclarationError([Problem(file, f"{where}.file", name, message)]) from error
    except (OSError, ValueError, csv.Error) as error:
        message = f"can't be read: {error}"
        raise DeclarationError([Problem(file, f"{where}.file", name, message)]) from error
    return {k: v for k, v in series.items() if k not in {"file", "column"}} | {"steps": steps}


def _step(number: int, row: dict[str, Any], column: str) -> list[float]:
    """Return time and value of a row of a file; rows count from 0."""
    at, value = row["at"], row[column]
    try:
        return [epoch_s(at or ""), float(value or "")]
    except ValueError as error:
        told = f"at is {at!r:.40} and {column} {value!r:.40}: give a time and a number"
        raise ValueError(f"row {number}: {told}") from error


def _check_order(steps: list[list[float]]) -> None:
    if not steps:
        raise ValueError("has no rows")
    for number, (before, after) in enumerate(pairwise(steps), start=1):
        if after[0] <= before[0]:
            raise ValueError(f"row {number}: its time is not after that of the row above; sort it")


def _with_epochs(series: dict[str, Any], where: str, file: str) -> dict[str, Any]:
    """Return a series whose steps have their times in epoch seconds."""
    steps = series.get("steps")
    if not isinstance(steps, list):
        return series
    try:
        found = [
            [epoch_s(each[0]), *each[1:]] if isinstance(each, list) else each for each in steps
        ]
    except (ValueError, IndexError) as error:
        raise DeclarationError([Problem(file, f"{where}.steps", "", str(error))]) from error
    return series | {"steps": found}


def epoch_s(time: Any) -> Any:
    """Return a time of a text in epoch seconds, UTC if it names no zone; a number as it is.

    Raises:
        ValueError: a text that is neither a number nor a time of ISO 8601.
    """
    if not isinstance(time, str):
        return time
    try:
        return float(time)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(time)
    except ValueError:
        message = f"{time[:40]!r} is no ISO 8601 time such as 2024-03-01T14:00Z"
        raise ValueError(message) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _with_offsets(series: dict[str, Any], where: str, file: str) -> dict[str, Any]:
    name = series.get("timezone")
    if not isinstance(name, str) or name == "UTC" or "offsets" in series:
        return series
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = "is no time zone that this machine knows, such as Europe/Berlin"
        raise DeclarationError([Problem(file, f"{where}.timezone", name, message)]) from error
    return series | {"offsets": _offsets(zone)}


def _offsets(zone: ZoneInfo) -> list[list[float]]:
    """Return from when on a zone is so many seconds ahead of UTC, to a quarter of an hour."""
    at, found = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC), []
    end = datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC)
    before: timedelta | None = None
    while at < end:
        ahead = at.astimezone(zone).utcoffset()
        if ahead is not None and ahead != before:
            if before is not None:
                while (at - _QUARTER).astimezone(zone).utcoffset() == ahead:
                    at -= _QUARTER
            found.append([at.timestamp(), ahead.total_seconds()])
            before = ahead
            at = at.replace(hour=0, minute=0)
        at += _DAY
    return found
