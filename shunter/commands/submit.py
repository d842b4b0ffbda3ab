"""`shunter submit`: publish requests, and follow them to their results."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shunter.client import submit_options as o
from shunter.client.answers import Printer
from shunter.client.kafka import note, run, tail
from shunter.client.line_wishes import wishes_from, with_wishes
from shunter.client.quotes import bound_lines
from shunter.client.request_lines import Checked, check_lines, good_lines
from shunter.client.result_files import ResultFiles, ResultFormat
from shunter.client.spans import submit_spans
from shunter.client.submit import SubmitTally, follow, publish
from shunter.console import (
    AsJson,
    Bootstrap,
    Prefix,
    UserError,
    check_writable,
    err,
    is_standard_input,
    named,
    out,
    settings_from,
)
from streams.engine.clock import SystemClock
from topics import Catalogue, Settings, parse_request
from topics.admin.provisioning import partition_counts
from topics.iso_time import iso_time
from topics.records.result import Status
from topics.terminal_text import visible_line

BAD_LINES_SHOWN_MAX = 20
DEAD_LETTERS_SHOWN_MAX = 20
STDIN_MEMORY_BYTES_MAX = 16 * 1024 * 1024
INCOMPLETE = 3
STATUSES: tuple[Status, ...] = ("completed", "failed", "expired", "rejected", "cancelled")


def submit(
    file: Annotated[Path, typer.Argument(help="JSONL of requests; - is standard input.")],
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    skip_bad: o.SkipBad = False,
    wait: o.Wait = False,
    follow_streams: o.FollowStreams = False,
    timeout_s: o.Timeout = None,
    output: o.Output = None,
    form: o.Format = ResultFormat.NATIVE,
    errors: o.Errors = None,
    in_order: o.InOrder = False,
    tenant: o.Tenant = None,
    deadline: o.Deadline = None,
    tier: o.Tier = None,
    quote: o.QuoteMost = None,
    regions: o.Regions = None,
    constraints: o.Constraints = None,
    as_json: AsJson = False,
) -> None:
    """Publish requests: one a line, native or as in an OpenAI Batch file, each as it stands.

    What the options say of all lines is written into those that don't say it themselves. Where a
    line is bad, each bad one is named and nothing is published, unless --skip-bad. --follow prints
    answers as they come.

    With --wait the exit code is 0 when each request was completed. It is 3 when one ended in
    another way: failed, expired, rejected, cancelled, as a dead letter, or as a duplicate that is
    not served since its id came before (known to those who may read the evidence). It is 1 when one
    has no end at the timeout.

    Example: shunter submit requests.jsonl --wait --timeout 600 --output results.jsonl
    """
    wait = wait or follow_streams
    if not wait and (timeout_s is not None or output is not None or errors is not None):
        raise UserError("--timeout, --output and --errors say how to wait: add --wait")
    if errors is not None and output is not None and errors.absolute() == output.absolute():
        raise UserError("--errors and --output name one file: leave --errors out for that")
    if quote is not None and deadline is None:
        raise UserError("--quote says what all lines may cost by --deadline: add that")
    wishes = wishes_from(tenant, deadline, tier, regions or (), constraints or ())
    settings = settings_from(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    if output is None and errors is None and (in_order or form is not ResultFormat.NATIVE):
        raise UserError("--format and --in-order say how to write --output: add that")
    _check_outputs(file, output, errors)
    with contextlib.ExitStack() as files, _opened(file) as (opened, name):
        checked = check_lines(
            with_wishes(opened, wishes),
            bytes_max=settings.request_bytes_max,
            with_questions=not wait or quote is not None,
        )
        _tell_bad(checked, name, skip_bad=skip_bad)
        opened.seek(0)
        lines: Iterable[bytes] = with_wishes(opened, wishes)
        if quote is not None and deadline is not None:
            lines, checked = _bound(settings, lines, checked, deadline, tier, quote)
        if not wait:
            run(_publish_only(settings, lines, checked))
            _tell_published(checked, settings, as_json=as_json)
            return
        written = ResultFiles(
            files.enter_context(_created(output, "--output")),
            files.enter_context(_created(errors, "--errors")),
            as_batch=form is ResultFormat.OPENAI_BATCH,
            order=list(checked.ids.values()) if in_order else None,
        )
        printer = Printer(out) if follow_streams else None
        tally = _followed(settings, lines, checked, timeout_s, written, printer, as_json=as_json)
    raise typer.Exit(_exit_code(tally))


def _exit_code(tally: SubmitTally) -> int:
    """Return whether all were completed, one ended in another way, or one has no end."""
    if tally.waiting:
        return 1
    return 0 if tally.statuses["completed"] == tally.submitted else INCOMPLETE


def _check_outputs(file: Path, output: Path | None, errors: Path | None) -> None:
    """Check that results can be written, and not over the requests.

    Raises:
        UserError: they can't.
    """
    for option, path in (("--output", output), ("--errors", errors)):
        if path is None:
            continue
        if path.is_file() and file.exists() and path.samefile(file):
            raise UserError(f"{option} {path} is the file of the requests: name another")
        check_writable(path)


def _bound(
    settings: Settings,
    lines: Iterable[bytes],
    checked: Checked,
    by: str,
    tier: str | None,
    most: float,
) -> tuple[list[bytes], Checked]:
    """Return the lines that take the cheapest offer, and tell what it is."""
    limit = settings.request_bytes_max
    requests = [parse_request(value, bytes_max=limit) for _, _, value in good_lines(lines, checked)]
    offer, taken = run(bound_lines(settings, requests, by, tier, most))
    note(
        f"quoted: {offer.cost_usd:.6f} US dollars at most, by {iso_time(offer.deadline)}, with"
        f" chance {offer.chance:.2%}"
    )
    again = check_lines(taken, bytes_max=limit)
    again.bad += checked.bad
    return taken, again


def _followed(
    settings: Settings,
    lines: Iterable[bytes],
    checked: Checked,
    timeout_s: float | None,
    files: ResultFiles,
    printer: Printer | None,
    *,
    as_json: bool,
) -> SubmitTally:
    """Publish, follow to the ends, and tell how it went."""
    names = frozenset(checked.ids.values())
    tally = SubmitTally(
        submitted=len(names), ids=names, waiting=set(names), streamed=checked.streamed
    )
    try:
        run(_publish_and_follow(settings, lines, checked, tally, timeout_s, files, printer))
    except KeyboardInterrupt:
        _tell_tally(tally, checked, as_json=as_json)
        raise typer.Exit(130) from None
    finally:
        files.finish(tally.unserved())
    _tell_tally(tally, checked, as_json=as_json)
    return tally


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Give the lines, which are read twice: once to check all, once to publish."""
    if is_standard_input(file):
        with _spooled(sys.stdin.buffer) as lines:
            yield lines, named(file)
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    with opened:
        if opened.seekable():
            yield opened, str(file)
            return
        with _spooled(opened) as lines:
            yield lines, str(file)


@contextlib.contextmanager
def _spooled(piped: BinaryIO) -> Iterator[BinaryIO]:
    """Give all that comes through a pipe, which can be read once alone."""
    with tempfile.SpooledTemporaryFile(max_size=STDIN_MEMORY_BYTES_MAX) as spool:
        shutil.copyfileobj(piped, spool)
        spool.seek(0)
        yield cast("BinaryIO", spool)


@contextlib.contextmanager
def _created(output: Path | None, option: str) -> Iterator[BinaryIO | None]:
    if output is None:
        yield None
        return
    try:
        sink = output.open("wb")
    except OSError as error:
        raise UserError(f"{option} {output}: {error.strerror}") from error
    with sink:
        yield sink


def _tell_bad(checked: Checked, name: str, *, skip_bad: bool) -> None:
    for line in checked.bad[:BAD_LINES_SHOWN_MAX]:
        note(f"{name}:{line.number}: {line.reason}")
    hidden = len(checked.bad) - BAD_LINES_SHOWN_MAX
    if hidden > 0:
        note(f"and {hidden} more")
    if checked.bad and not skip_bad:
        raise UserError(
            f"{name}: {len(checked.bad)} of {len(checked.bad) + len(checked.ids)} lines are no"
            " requests; nothing was published. Mend them, or publish the others with --skip-bad"
        )
    if not checked.ids:
        raise UserError(f"{name} has no request to publish")


async def _publish_only(settings: Settings, lines: Iterable[bytes], checked: Checked) -> None:
    await partition_counts(settings, [Catalogue(settings).requests])
    with (
        _progress("published", len(checked.ids)) as advance,
        submit_spans(settings, SystemClock()) as spans,
    ):
        await publish(settings, good_lines(lines, checked), advance, spans, checked.sessions)


async def _publish_and_follow(
    settings: Settings,
    lines: Iterable[bytes],
    checked: Checked,
    tally: SubmitTally,
    timeout_s: float | None,
    files: ResultFiles,
    printer: Printer | None,
) -> None:
    catalogue = Catalogue(settings)
    topics = [catalogue.results, catalogue.dead_letters]
    if printer is not None:
        topics.append(catalogue.streams)
    # Evidence tells of duplicates, to those who may read it. Standing at the end before anything
    # is published, no result can be missed.
    async with tail(settings, topics, also=[catalogue.evidence]) as reader:
        await _publish_only(settings, lines, checked)
        # A bar among the answers would tear them apart.
        with _progress("ended", tally.submitted, is_shown=printer is None) as advance:
            shown = 0

            def changed() -> None:
                nonlocal shown
                advance(tally.done - shown)
                shown = tally.done

            await follow(
                reader,
                tally,
                catalogue,
                timeout_s=timeout_s,
                output=files,
                changed=changed,
                printer=printer,
            )


@contextlib.contextmanager
def _progress(what: str, total: int, *, is_shown: bool = True) -> Iterator[Callable[[int], object]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    is_hidden = not (is_shown and err.is_terminal)
    with Progress(*columns, console=err, transient=True, disable=is_hidden) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _tell_published(checked: Checked, settings: Settings, *, as_json: bool) -> None:
    count, skipped = len(checked.ids), len(checked.bad)
    if as_json:
        typer.echo(orjson.dumps({"submitted": count, "skipped": skipped}).decode())
        return
    told = f"{count} published to {Catalogue(settings).requests}"
    out.print(told + (f", {skipped} bad lines skipped" if skipped else ""), highlight=False)


def _tell_tally(tally: SubmitTally, checked: Checked, *, as_json: bool) -> None:
    counts = {"submitted": tally.submitted, "skipped": len(checked.bad)}
    counts |= {status: tally.statuses[status] for status in STATUSES}
    counts |= {"duplicate": len(tally.duplicates), "dead_lettered": len(tally.dead_letters)}
    counts |= {"missing": len(tally.waiting)}
    if as_json:
        typer.echo(orjson.dumps(counts).decode())
    else:
        for name, count in counts.items():
            if count or name in {"submitted", "completed", "missing"}:
                out.print(f"{name.replace('_', ' '):14}{count:>9,}", highlight=False)
    for name, reason in list(tally.dead_letters.items())[:DEAD_LETTERS_SHOWN_MAX]:
        note(visible_line(f"dead letter: {name}: {reason}"))
