"""`shunter results`: follow results, or show the one of a request."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Table
from rich.text import Text

from shunter.client.kafka import note, read_by_key, run, tail
from shunter.client.result_files import ResultFormat
from shunter.console import AsJson, Bootstrap, Prefix, UserError, out, settings_from
from streams.engine.log import Record
from streams.live.story import tokens, where
from topics import BadRecordError, Catalogue, Result, Settings, Timing, decode
from topics.openai_api.batch_output import line_of_result
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
    form: Annotated[
        ResultFormat,
        typer.Option("--format", help="openai-batch prints lines of a Batch output file."),
    ] = ResultFormat.NATIVE,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Where such lines of requests without an answer go."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow results as they appear, one a line, until Ctrl-C; or show that of one request.

    With --json each line is the result as it was published. With an ID the exit code is 1 when
    there is none.

    Example: shunter results request-1
    """
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    wanted = request_id if request_id is not None else request
    if wanted is not None and from_beginning:
        raise UserError(
            "--from-beginning says where following begins, and an ID shows one result, however old:"
            " leave one of the two out"
        )
    if form is ResultFormat.OPENAI_BATCH:
        found = None if wanted is None else _result_of(settings, wanted)
        with _batch_lines(errors) as tell:
            if found is not None:
                tell(*found)
                return
            with contextlib.suppress(KeyboardInterrupt):
                run(_follow(settings, tell, from_beginning=from_beginning))
        return
    if errors is not None:
        raise UserError("--errors goes with --format openai-batch")
    if wanted is not None:
        _show_one(settings, wanted, as_json=as_json)
        return
    if not as_json:
        typer.echo(LINE.format(*HEADINGS))

    def tell_line(record: Record, result: Result) -> None:
        typer.echo((record.value or b"").decode() if as_json else _line(result))

    with contextlib.suppress(KeyboardInterrupt):
        run(_follow(settings, tell_line, from_beginning=from_beginning))


@contextlib.contextmanager
def _batch_lines(errors: Path | None) -> Iterator[Callable[[Record, Result], None]]:
    """Provide what prints a result as a line of Batch output, or writes it to the error file."""
    with contextlib.ExitStack() as opened:
        try:
            sink = None if errors is None else opened.enter_context(errors.open("wb"))
        except OSError as error:
            raise UserError(f"--errors {errors}: {error.strerror}") from error

        def tell(_: Record, result: Result) -> None:
            line, is_error = line_of_result(result)
            if is_error and sink is not None:
                sink.write(line + b"\n")
                sink.flush()
            else:
                typer.echo(line.decode())

        yield tell


async def _follow(
    settings: Settings, tell: Callable[[Record, Result], None], *, from_beginning: bool
) -> None:
    topic = Catalogue(settings).results
    async with tail(settings, [topic], from_beginning=from_beginning) as reader:
        while True:
            for record in await reader.poll(POLL_S):
                result = _read(record)
                if result is not None:
                    tell(record, result)


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


def _result_of(settings: Settings, request: str) -> tuple[Record, Result]:
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
    return found[-1]


def _show_one(settings: Settings, request: str, *, as_json: bool) -> None:
    record, result = _result_of(settings, request)
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
