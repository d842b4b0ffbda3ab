"""`shunter quote`: what the requests of a file would cost, by each of several deadlines."""

from pathlib import Path
from secrets import token_hex
from typing import Annotated

import orjson
import typer
from rich.table import Table

from shunter.client.kafka import run
from shunter.client.quotes import MenuLine, Wish, as_sent, ask, menu_of, questions
from shunter.client.request_lines import check_lines, good_lines
from shunter.commands.audit_report import time_of
from shunter.console import (
    AsJson,
    Bootstrap,
    Prefix,
    UserError,
    check_writable,
    named,
    out,
    read_input,
    settings_from,
    write_output,
)
from topics import InferenceRequest, parse_request
from topics.iso_time import iso_time
from topics.records.request import duration_s

# Shorter windows are told to the hundredth of a second.
WHOLE_FROM_S = 60.0

By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        help="A deadline: a window from acceptance (`90s`, `6h`), or a time in ISO 8601, UTC if it"
        " says none. Several may be given; without any, the menu has those that can be promised.",
    ),
]
Tiers = Annotated[
    list[str] | None, typer.Option("--tier", help="A service tier; several may be given.")
]
Take = Annotated[
    int | None,
    typer.Option("--take", min=1, help="Accept this line of the menu: write --output."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", help="With --take: JSONL of the requests, for `shunter submit`."),
]


def quote(
    file: Annotated[
        Path,
        typer.Argument(help="JSONL of requests, as for `shunter submit`; - for standard input."),
    ],
    by: By = None,
    tiers: Tiers = None,
    take: Take = None,
    output: Output = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Ask what requests would cost, and by when, with what chance; nothing runs.

    The price of a line is the most that all requests together pay who take it while it is valid.
    A line is taken by publishing the requests with its quote_ids: --take writes them so.

    Example: shunter quote requests.jsonl --by 10m --by 6h --tier flex --take 2 --output taken.jsonl
    """
    if (take is None) != (output is None):
        raise UserError("--take and --output go together: the line, and where to write what it is")
    check_writable(output)
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    requests = _requests(file, settings.request_bytes_max)
    wish, prefix = _wish(by or [], tiers or []), f"quote-{token_hex(6)}"
    asked = dict(questions(requests, wish, prefix, settings.request_bytes_max))
    menu = menu_of(run(ask(settings, asked)))
    if take is not None and output is not None:
        _write(output, requests, _taken(menu, take))
    if as_json:
        typer.echo(orjson.dumps([_as_json(line) for line in menu]).decode())
    else:
        out.print(_table(menu))


def _requests(file: Path, bytes_max: int) -> list[InferenceRequest]:
    try:
        lines = read_input(file).splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{named(file)}: {error.strerror}") from error
    checked = check_lines(lines, bytes_max=bytes_max)
    if checked.bad:
        first = checked.bad[0]
        raise UserError(
            f"{named(file)}:{first.number}: {first.reason};"
            f" {len(checked.bad)} lines are no requests"
        )
    if not checked.ids:
        raise UserError(f"{named(file)} has no request to quote")
    return [parse_request(value, bytes_max=bytes_max) for _, _, value in good_lines(lines, checked)]


def _wish(by: list[str], tiers: list[str]) -> Wish:
    windows, deadlines = [], []
    for each in by:
        try:
            duration_s(each)
        except (AttributeError, KeyError, ValueError):
            deadlines.append(time_of(each, 0.0))
        else:
            windows.append(each)
    return Wish(windows, deadlines, tiers)


def _taken(menu: list[MenuLine], number: int) -> MenuLine:
    if number > len(menu):
        raise UserError(f"--take {number}: the menu has {len(menu)} lines; nothing was written")
    return menu[number - 1]


def _write(output: Path, requests: list[InferenceRequest], line: MenuLine) -> None:
    values = [orjson.dumps(as_sent(r, line.quote_ids[r.id])) for r in requests]
    write_output(output, b"\n".join(values) + b"\n")


def _as_json(line: MenuLine) -> dict[str, object]:
    return {
        "deadline": line.deadline,
        "within_s": line.within_s,
        "tier": line.tier,
        "cost_usd": line.cost_usd,
        "chance": line.chance,
        "valid_until": line.valid_until,
        "quote_ids": line.quote_ids,
    }


def _table(menu: list[MenuLine]) -> Table:
    table = Table(
        title="What all requests together cost at most",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for name in ("", "tier", "by", "US dollars", "chance", "valid until"):
        table.add_column(name, justify="left" if name in ("tier", "by") else "right")
    for number, line in enumerate(menu, start=1):
        when = iso_time(line.deadline)
        if line.within_s is not None:
            digits = 0 if line.within_s >= WHOLE_FROM_S else 2
            when = f"{line.within_s:,.{digits}f} s after acceptance"
        table.add_row(
            str(number),
            line.tier,
            when,
            f"{line.cost_usd:.6f}",
            f"{line.chance:.2%}",
            iso_time(line.valid_until),
        )
    return table
