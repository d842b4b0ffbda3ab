"""The report of a demo on real models: each answer with its pool, tokens, times and trace."""

from collections.abc import Iterator

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shunter.demo.real import RealOutcome
from shunter.demo.real_requests import answer_of, likenesses
from shunter.demo.report import print_door
from shunter.render.story import story
from topics import Result

TOLD = "chat-0"
"""The request whose story is told."""
KEEP = "shunter demo --real --keep"
HEADINGS = ("tokens in", "out", "first, s", "all, s", "$")


def print_real(console: Console, outcome: RealOutcome, *, kept: bool) -> None:
    """Print the whole report."""
    model = outcome.model
    size = f"{model.parameters / 1e6:,.0f} M parameters of {model.bits:.0f} bits"
    told = Text(f"{model.name} ({model.file}): {size}, on llama.cpp")
    console.print("", _verdict(outcome), "", told, "", sep="\n")
    console.print(_table(outcome))
    for name in _names(outcome):
        body = _body(outcome.results[name])
        if body is not None:
            told = Text(f"{name}: ", "bold").append(answer_of(body), "not bold")
            console.print(told)
    bodies = {name: body for name in _names(outcome) if (body := _body(outcome.results[name]))}
    for one, other, cosine in likenesses(bodies):
        console.print(Text(f"{cosine:+.2f}  {one} / {other}"))
    console.print("", Rule(f"The story of {TOLD}", align="left"))
    console.print(story(outcome.evidence.get(TOLD, ())))
    _print_traces(console, outcome)
    if kept:
        console.print("", Text(f"{outcome.page}  the live page"), soft_wrap=True)
    print_door(console, outcome.door, kept=kept, model=model.name, how=KEEP)


def figures_of(outcome: RealOutcome) -> dict[str, object]:
    """Return the same for programs."""
    return {
        "model": outcome.model.name,
        "problems": list(outcome.problems),
        "answers": [_figures(outcome.results[name]) for name in _names(outcome)],
    }


def _figures(result: Result) -> dict[str, object]:
    body, usage, timing = _body(result), result.usage, result.timing
    return {
        "id": result.id,
        "status": result.status,
        "pool": result.placement.pool if result.placement else None,
        "path": result.placement.path if result.placement else None,
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "ttft_s": timing.first_token_at - timing.created_at if timing.first_token_at else None,
        "finish_s": timing.finished_at - timing.created_at if timing.finished_at else None,
        "cost_usd": result.cost.usd if result.cost else None,
        "trace_id": result.trace_id,
        "answer": None if body is None else answer_of(body),
    }


def _names(outcome: RealOutcome) -> Iterator[str]:
    return (each["id"] for each in outcome.requests)


def _body(result: Result) -> dict[str, object] | None:
    if result.status != "completed" or result.response is None:
        return None
    body: dict[str, object] = result.response.body
    return body


def _verdict(outcome: RealOutcome) -> Text:
    count = len(outcome.requests)
    if outcome.problems:
        return Text("\n".join([f"{count} requests in, and:", *outcome.problems]), "bold red")
    return Text(f"{count} requests in, {count} answers of real models out.", "bold green")


def _table(outcome: RealOutcome) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("request", no_wrap=True)
    table.add_column("pool", no_wrap=True)
    table.add_column("path", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name in _names(outcome):
        found = _figures(outcome.results[name])
        shown = (found["ttft_s"], found["finish_s"])
        table.add_row(
            *(str(found[key] or "") for key in ("id", "pool", "path")),
            *(str(found[key] or "") for key in ("input_tokens", "output_tokens")),
            *("" if seconds is None else f"{seconds:.2f}" for seconds in shown),
            "" if found["cost_usd"] is None else f"{found['cost_usd']:.7f}",
        )
    return table


def _print_traces(console: Console, outcome: RealOutcome) -> None:
    if outcome.jaeger is None:
        return
    console.print("", Rule("Traces", align="left"))
    for name in _names(outcome):
        trace_id = outcome.results[name].trace_id
        if trace_id is not None:
            console.print(Text(f"{name}  {outcome.jaeger.address(trace_id)}"), soft_wrap=True)
