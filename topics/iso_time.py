"""Times for people, in ISO 8601."""

import re
from datetime import UTC, datetime

_EPOCH = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")


def iso_time(at: float) -> str:
    """Format epoch seconds in UTC, to the second; a number that is no such time stays as it is."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{at} s"


def epoch_of(text: str) -> float:
    """Return a day or time of ISO 8601 in epoch seconds; one that says no zone is in UTC.

    Raises:
        ValueError: it is none.
    """
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def time_told(text: str) -> float | None:
    """Return a time that is told in epoch seconds or in ISO 8601; None if it is in neither."""
    if _EPOCH.fullmatch(text):
        return float(text)
    try:
        return epoch_of(text)
    except (ValueError, OverflowError):
        return None
