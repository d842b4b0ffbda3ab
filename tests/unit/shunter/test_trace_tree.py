"""`shunter trace`: the tree that a person reads, at 80 columns."""

from io import StringIO

from rich.console import Console
from span_cases import TRACE, span
from typer.testing import CliRunner

from shunter.cli import app
from shunter.console import UserError
from shunter.jaeger import Event, Link, Span
from shunter.render.trace_tree import tree


def shown(*spans: Span) -> list[str]:
    console = Console(width=80, record=True, file=StringIO())
    console.print(tree(spans))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_tree_shows_when_how_long_where_and_why() -> None:
    candidate = {
        "shunter.candidate": "eu m-fp8 direct: cheapest_in_time",
        "shunter.candidate.reason": "cheapest_in_time",
        "shunter.candidate.is_chosen": True,
        "shunter.candidate.cost_usd": 0.0001234,
        "shunter.candidate.finish_s": 0.5,
        "shunter.candidate.chance": 0.97,
    }
    lines = shown(
        span(
            1, "process T", 0.0, 0.004,
            attributes={
                "shunter.decision": "placed", "shunter.decision.reason": "cheapest_in_time",
                "shunter.pool": "eu", "shunter.candidates.left_out": 3,
            },
            events=(Event("candidate", 1000.0, candidate),),
        ),
        span(2, "send L", 0.001, 0.004, 1),
        span(3, "chat m", 0.5, 2.5, 2, service="shunter-worker",
             attributes={"error.type": "timeout"}, error="no answer in 2 s"),
        span(4, "queue", 0.01, 0.5, 2, service="shunter-worker", links=(Link("f" * 32, "1", {}),)),
    )  # fmt: skip
    text = "\n".join(lines)
    assert lines[0] == f"trace {TRACE}  4 spans, 2.50 s"
    assert "decided: placed · the cheapest likely enough to be in time · eu" in text
    assert "● eu m-fp8 direct  $0.0001234  500.0 ms  97%  cheapest_in_time" in text
    assert "and 3 more" in text
    assert [line.split("+")[1] for line in lines if "+" in line] == [
        "0.0 ms process T  4.0 ms  shunter-router",
        "1.0 ms send L  3.0 ms  shunter-router",
        "10.0 ms queue  490.0 ms  shunter-worker",
        "500.0 ms chat m  2.00 s  shunter-worker",
    ]
    assert "timeout: no answer in 2 s" in text
    assert f"linked to trace {'f' * 32}" in text
    assert max(map(len, lines)) <= 80


def test_a_span_whose_parent_is_missing_is_shown_all_the_same() -> None:
    lines = shown(span(2, "send L", 0.0, 0.1, 99))
    assert any("send L" in line for line in lines)


def test_without_a_jaeger_it_says_where_it_looked_and_what_to_do() -> None:
    result = CliRunner().invoke(app, ["trace", TRACE, "--jaeger", "http://127.0.0.1:1"])
    assert isinstance(result.exception, UserError)
    assert "no Jaeger answers at http://127.0.0.1:1" in str(result.exception)
    assert "SHUNTER_JAEGER_URL" in str(result.exception)
