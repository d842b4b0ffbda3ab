"""Spans as Jaeger gives them."""

from typing import Any

from shunter.jaeger import Span

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(number: int, name: str, start: float, end: float, above: int = 0, **more: Any) -> Span:
    said = {"service": "shunter-router"} | more
    return Span(
        TRACE,
        f"{number:016x}",
        f"{above:016x}" if above else "",
        name=name,
        start=1000.0 + start,
        end=1000.0 + end,
        **said,
    )
