"""`shunter results`: follow results, or show the one of a request."""

import contextlib
from collections.abc import Iterator
from typing import Annotated

import orjson
import typer
from rich.table import Table
from rich.text import Text

from shunter.client.kafka import note, read_by_key, run, tail
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from streams.engine.log import Record
from streams.live.story import tokens, where
from topics import BadRecordError, Catalogue, Result, Settings, Timing, decode
from topics.terminal_text import visible_line

POLL_S = 0.5
LINE = "{:<18} {:<9} {:<11} {:<18} {:<6} {:>8} {:>10}"
HEADINGS = ("id", "status", "pool", "variant", "path", "s", "$")


def results(
    request_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show the result of this request alone.")
    ] = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="The same as ID.", hidden=True)
    ] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest result there is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Follow results as they appear, one a line, until Ctrl-C; or show that of one request.

    With --json each line is the result as it was published. With an ID the exit code is 1 when
    there is none.

    Example: shunter results request-1
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    wanted = request_id if request_id is not None else request
    if wanted is not None:
        _show_one(settings, wanted, as_json=as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        run(_follow(settings, from_beginning=from_beginning, as_json=as_json))


async def _follow(settings: Settings, *, from_beginning: bool, as_json: bool) -> None:
    topic = Catalogue(settings).results
    async with tail(settings, [topic], from_beginning=from_beginning) as reader:
        if not as_json:
            typer.echo(LINE.format(*HEADINGS))
        while True:
            for record in await reader.poll(POLL_S):
                result = _read(record)
                if result is not None:
                    value = (record.value or b"").decode()
                    typer.echo(value if as_json else _line(result))


def _read(record: Record) -> Result | None:
    try:
        return decode(Result, record.value or b"")
    except BadRecordError as error:
        where = f"{record.partition.topic}/{record.partition.number}@{record.offset}"
        note(f"{where} is left out: {error.message}")
        return None


def _line(result: Result) -> str:
    placement = result.placement
    error = "" if result.error is None else result.error.code
    latency_s = _latency_s(result.timing)
    line = LINE.format(
        result.id,
        result.status,
        placement.pool if placement else "-",
        placement.model_variant if placement else error,
        placement.path if placement else "-",
        "-" if latency_s is None else f"{latency_s:.3f}",
        f"{result.cost.usd:.7f}" if result.cost else "-",
    )
    return visible_line(line)


def _latency_s(timing: Timing) -> float | None:
    return None if timing.finished_at is None else timing.finished_at - timing.created_at


def _show_one(settings: Settings, request: str, *, as_json: bool) -> None:
    topic = Catalogue(settings).results
    records = run(read_by_key(settings, topic, request.encode()))
    found = [(record, result) for record in records if (result := _read(record)) is not None]
    if not found:
        raise UserError(
            f"there is no result of request {request!r} on {topic} at"
            f" {settings.bootstrap_servers}: it runs or waits still, its result is older than the"
            f" topic keeps, or the id is another one; see `shunter audit show {request}`"
        )
    if len(found) > 1:
        note(f"{len(found)} results have this id; the newest is shown")
    record, result = found[-1]
    if as_json:
        typer.echo((record.value or b"").decode())
    else:
        out.print(_card(result))


def _card(result: Result) -> Table:
    card = Table.grid(padding=(0, 2))
    card.add_column(style="dim", no_wrap=True)
    card.add_column(overflow="fold")
    for label, value in _facts(result):
        if value:
            card.add_row(label, Text(value))
    return card


def _facts(result: Result) -> Iterator[tuple[str, str | None]]:
    yield "request", visible_line(result.id)
    yield "status", result.status
    if (error := result.error) is not None:
        yield "error", visible_line(f"{error.code}: {error.message}")
    if result.placement is not None:
        yield "where", where(result.placement)
    yield "timing", _timing(result.timing)
    if result.usage is not None:
        yield "tokens", tokens(result.usage)
    if (cost := result.cost) is not None:
        promised = "" if cost.envelope_usd is None else f" (promised ${cost.envelope_usd:.7f})"
        yield "cost", f"${cost.usd:.7f}{promised}"
    yield "trace", result.trace_id
    yield "metadata", _json(result.metadata)
    if (response := result.response) is not None:
        yield "response", f"HTTP {response.status_code}"
        yield "body", _json(response.body)


def _timing(timing: Timing) -> str:
    steps = {
        "routed": timing.routed_at,
        "released": timing.released_at,
        "started": timing.started_at,
        "first token": timing.first_token_at,
        "finished": timing.finished_at,
    }
    return ", ".join(
        f"{name} {at - timing.created_at:+.3f} s" for name, at in steps.items() if at is not None
    )


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
