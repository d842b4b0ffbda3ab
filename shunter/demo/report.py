"""The final report of a demo: figures per class and pool, two stories, next steps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shunter.demo.door import MODEL, lines_for
from shunter.demo.ledger import Ledger
from shunter.demo.run import DemoOutcome
from shunter.demo.system import variables
from shunter.demo.view import saving
from shunter.render.story import story
from shunter.savings.table import replays

KEEP = "shunter demo --keep"
KEPT = "stays up, with a gateway, and prints three lines of Python that ask it"
WHERE = (
    "SHUNTER_BOOTSTRAP_SERVERS",
    "SHUNTER_TOPIC_PREFIX",
    "SHUNTER_FLEET",
    "SHUNTER_POLICY",
)
CLASS_HEADINGS = (
    "number",
    "batched",
    "TTFT\np50",
    "\np95",
    "finish\np95",
    "SLO\nmet",
    "$",
    "premium\n$",
)
EXAMPLES = (
    ("One that was served at once", "direct", "chat"),
    ("One that waited for a batch", "batch", "summarization"),
)


def report(outcome: DemoOutcome, *, kept: bool) -> RenderableType:
    """Return the whole final report.

    Args:
        outcome: of the demo.
        kept: whether the system stays up.
    """
    figures = outcome.figures
    parts: list[RenderableType] = [
        "",
        _verdict(figures),
        "",
        _classes(figures),
        "",
        _pools(figures),
        "",
        _facts(figures),
    ]
    for example in EXAMPLES:
        parts += _story(outcome, *example)
    parts += ["", Rule("How to go on", align="left"), _further(outcome, kept=kept)]
    return Group(*parts)


def print_traces(console: Console, outcome: DemoOutcome) -> None:
    """Print the addresses of selected traces, each on one line so that it opens."""
    if found := traces(outcome):
        console.print("", Rule("Traces", align="left"))
    for title, address in found.items():
        console.print(Text(title))
        console.print(Text(address), soft_wrap=True)


def print_door(
    console: Console, door: str, *, kept: bool, model: str = MODEL, how: str = KEEP
) -> None:
    """Print lines of Python for the gateway, each on one line so that it can be copied.

    A demo that ends takes its gateway with it: then print how to have one that stays.

    Args:
        console: where.
        door: URL of the gateway, empty where none is open.
        kept: whether the system stays up.
        model: the model that is asked.
        how: the command that keeps a gateway open.
    """
    if not kept:
        told = Text(how, "bold").append(f"  {KEPT}", "not bold")
        console.print("", told, soft_wrap=True)
        return
    if door:
        console.print("", Rule("Three lines of Python", align="left"))
        for line in lines_for(door, model):
            console.print(Text(line), soft_wrap=True)
        console.print(Text("OpenAI's client: pip install openai", style="dim"))
    opened = f"The gateway {door} and the live page are open" if door else "The live page is open"
    console.print("", Text(f"{opened} until Ctrl-C here.", "bold"), soft_wrap=True)


def print_savings(console: Console, outcome: DemoOutcome, *, kept: bool) -> None:
    """Print what other policies would have paid; the page of it is there while a demo is kept."""
    found = outcome.savings
    if found is None:
        console.print(Text("The savings report could not be made: shunter report savings", "red"))
        return
    console.print("", Rule("What it saved, from the evidence alone", align="left"), replays(found))
    for each in found["questions"].values():
        sign = "-" if each["usd"] < 0 else ""
        console.print(Text(f"{each['told']}: {sign}${abs(each['usd']):.4f}"))
    again = "shunter report savings --output savings.html"
    where = f"{outcome.run_dir / 'savings.html'}; all of it: {again}" if kept else again
    console.print(Text(where, style="dim"), soft_wrap=True)


def traces(outcome: DemoOutcome) -> dict[str, str]:
    """Return the addresses of selected traces, by what they show."""
    found = {}
    for title, path, task in EXAMPLES:
        name = _example(outcome.ledger, path, task)
        trace_id = None if name is None else outcome.ledger.results[name].trace_id
        if outcome.jaeger is not None and trace_id is not None:
            found[title] = outcome.jaeger.address(trace_id)
    return found


def _verdict(figures: Mapping[str, Any]) -> Text:
    if not figures["problems"]:
        return Text(
            f"{figures['requests']:,} requests in, {figures['results']:,} results out: none lost,"
            " none twice, no constraint broken.",
            style="bold green",
        )
    lines = [f"{figures['requests']:,} requests in, {figures['results']:,} results out, and:"]
    return Text("\n".join([*lines, *figures["problems"]]), style="bold red")


def _classes(figures: Mapping[str, Any]) -> Table:
    table = _table("per class, in seconds of the trace")
    table.add_column("class", no_wrap=True)
    for heading in CLASS_HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for task, found in figures["by_task"].items():
        table.add_row(
            task,
            f"{found['requests']:,}",
            f"{found['batched']:,}" if found["batched"] else "",
            _seconds(found["ttft_s"], "p50"),
            _seconds(found["ttft_s"], "p95"),
            _seconds(found["finish_s"], "p95"),
            f"{figures['slo_attainment']['by_task'][task]:.1%}",
            f"{found['cost_usd']:.4f}",
            f"{found['cost_all_premium_usd']:.4f}",
        )
    return table


def _pools(figures: Mapping[str, Any]) -> Table:
    table = _table("per pool")
    table.add_column("pool", no_wrap=True)
    for heading in ("direct", "batch", "batches", "output tokens", "$"):
        table.add_column(heading, justify="right", no_wrap=True)
    assumed = figures.get("assumed_pools", ())
    for pool, found in figures["by_pool"].items():
        counts = (found[name] for name in ("direct", "batch", "batches", "output_tokens"))
        shown = f"{pool}, assumed" if pool in assumed else pool
        table.add_row(shown, *(f"{n:,}" if n else "" for n in counts), f"{found['cost_usd']:.4f}")
    return table


def _trail(trail: Mapping[str, Any]) -> str:
    counted = f"{trail['records']:,} records under {trail['roots']:,} signed roots"
    if trail["problems"]:
        return f"{counted}: {sum(trail['problems'].values())} problems"
    return f"{counted}, verified; its keys are introduced by {trail['trusted'][:8]}..."


def _facts(figures: Mapping[str, Any]) -> Table:
    batches = figures["batches"]
    return _grid(
        [
            ("money", _money(figures)),
            ("batches", f"{batches['count']:,} of {batches['mean_size']:.1f} requests on average"),
            ("caches", f"had {figures['cached_share']:.1%} of the prompts' tokens"),
            ("audit trail", _trail(figures["trail"])),
            ("SLO met", f"{figures['slo_attainment']['overall']:.1%} of all requests"),
            ("machine", _machine(figures["machine"])),
            ("took", f"{figures['wall_s']:.0f} s, at {figures['speed']:g} times the trace's speed"),
        ]
    )


def _machine(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not measured, since the speed was given"
    return (
        f"carries {measured['per_s']:.0f} requests/s; {measured['expected_attainment']:.1%} were"
        " expected to get through the bursts in time"
    )


def _money(figures: Mapping[str, Any]) -> str:
    compared, premium = figures["cost_compared_usd"], figures["cost_all_premium_usd"]
    told = f"${figures['cost_usd']:.4f}; the same on premium GPUs ${premium:.4f}"
    if figures["compared"] < figures["results"]:
        told += f" for {figures['compared']:,} of them that these could serve"
    words = saving(compared, premium)
    return f"{told} ({words})" if words else told


def _example(ledger: Ledger, path: str, task: str) -> str | None:
    """Return a completed request with this route, one of the task if there is any."""
    able = [name for name in ledger.results if _went(ledger, name, path)]
    return max(able, key=lambda name: _interest(ledger, name, task), default=None)


def _went(ledger: Ledger, name: str, path: str) -> bool:
    result = ledger.results[name]
    if result.status != "completed" or result.placement is None:
        return False
    # A batch is decided on as one; the evidence of its first member has the candidates.
    leads = all(step.batch is None or step.batch.index == 0 for step in ledger.evidence[name])
    return result.placement.path == path and leads


def _interest(ledger: Ledger, name: str, task: str) -> tuple[bool, int, bool]:
    """Rank by class, then by the size of the batch, then by whether anything was refused."""
    steps = ledger.evidence[name]
    size = max((step.batch.size for step in steps if step.batch), default=0)
    refused = any(candidate.refused for step in steps for candidate in step.candidates)
    return steps[0].task == task, size, refused


def _story(outcome: DemoOutcome, title: str, path: str, task: str) -> Iterable[RenderableType]:
    name = _example(outcome.ledger, path, task)
    if name is None:
        return
    speed = outcome.figures["speed"]
    yield from ("", Rule(title, align="left"))
    if speed != 1:
        yield Text(f"Seconds as they passed here; those of the trace are {speed:g} times as many.")
    yield story(outcome.ledger.evidence[name])


def _further(outcome: DemoOutcome, *, kept: bool) -> RenderableType:
    if not kept:
        return _grid(
            [
                ("shunter policy explain REQUEST.json", "where a request would go, and why"),
                ("shunter broker", "a Kafka of your own; then topics apply, router, worker POOL"),
                ("shunter --help", "all commands"),
            ]
        )
    found = variables(outcome.settings)
    exports = "\n".join(f"export {name}={found[name]}" for name in WHERE)
    name = next(iter(outcome.ledger.results), "demo-1")
    further = [
        (outcome.page, "the live page"),
        *([(outcome.door, "the gateway; /docs has its API")] if outcome.door else []),
        ("shunter top", "the live view, with keys"),
        (f"shunter audit show {name}", "the story of another request"),
        ("shunter submit FILE --wait", "requests of your own"),
        (f"ls {outcome.run_dir}", "fleet, policy and the log of each process"),
        ("Ctrl-C here", "stops everything"),
    ]
    # Not in the grid, whose columns would break it where it is copied from.
    verify = f"shunter audit verify --trust {outcome.figures['trail']['trusted']}"
    checked = Text.assemble((verify, "bold"), "  the audit trail")
    return Group("In another terminal:", Text(exports, style="bold"), _grid(further), checked)


def _seconds(spread: Mapping[str, float] | None, name: str) -> str:
    return "" if spread is None else f"{spread[name]:.2f}"


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )


def _grid(facts: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(Text(label), Text(value))
    return grid
