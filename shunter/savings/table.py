"""The report in a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table


def tables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the report of ``savings``: replays first, then what is asked of them, then misses."""
    paid = found["paid"]["total"]
    yield (
        f"{paid['requests']:,} requests ended, {paid['completed']:,} answered:"
        f" {paid['paid_usd']:.4f} US dollars paid"
    )
    if found["policies"]:
        yield replays(found)
    yield from _differences(found)
    for each in found["misses"]:
        yield f"missed {each['objective']}, {each['class']}: {each['requests']:,}, {each['why']}"


def replays(found: Mapping[str, Any]) -> Table:
    """Return the table of replays."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"{found['replayed']:,} requests, replayed", overflow="fold")
    for heading in ("$", "against\nthis", "SLO\nmet", "no\nanswer"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found["policies"].values():
        table.add_row(
            each["told"],
            f"{each['cost_usd']:.4f}",
            f"{each['saved_usd']:+.4f}" if each["saved_usd"] else "",
            f"{each['slo_attainment']:.1%}",
            f"{each['unanswered']:,}" if each["unanswered"] else "",
        )
    return table


def _differences(found: Mapping[str, Any]) -> Iterator[str]:
    bound = found["lower_bound"]
    if bound["usd"] is not None:
        yield f"lower bound: {bound['usd']:.4f} US dollars"
    elif bound["note"]:
        yield f"no lower bound: {bound['note']}"
    for each in found["questions"].values():
        yield f"{each['told']}: {each['usd']:.4f} US dollars"
