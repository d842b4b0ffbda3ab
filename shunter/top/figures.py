"""Figures formatted for a narrow column."""

from collections.abc import Mapping

NONE = "-"
FULL, EMPTY = "█", "░"


def count(value: float) -> str:
    """Format a whole number with separators, or in thousands if it is long."""
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:.1f}M"


def rate(value: float) -> str:
    """Format a number per second."""
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """Format a share (0 to 1)."""
    if share is None:
        return NONE
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def usd(value: float) -> str:
    """Format US dollars."""
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def duration(seconds: float | None) -> str:
    """Format a time in a fitting unit."""
    if seconds is None:
        return NONE
    size = abs(seconds)
    if size < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if size < 99.5:
        return f"{seconds:.2f} s" if size < 9.995 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if size < 5940 else f"{seconds / 3600:.1f} h"


def mean(total: float, parts: int) -> str:
    """Return the mean of some parts; none if there are none."""
    return f"{total / parts:.1f}" if parts else NONE


def bar(share: float, width: int) -> str:
    """Return a share as a bar; more than zero always shows."""
    filled = min(width, max(round(share * width), 1 if share > 0 else 0))
    return FULL * filled + EMPTY * (width - filled)


def counts(found: Mapping[str, int]) -> str:
    """Format names with their counts."""
    return ", ".join(f"{name} {count(n)}" for name, n in found.items()) or NONE
