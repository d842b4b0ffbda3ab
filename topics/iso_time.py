"""Times for people, in ISO 8601."""

from datetime import UTC, datetime


def iso_time(at: float) -> str:
    """Format epoch seconds in UTC, to the second; a number that is no such time stays as it is."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{at} s"
