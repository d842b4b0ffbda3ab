"""`shunter policy backtest`: a trace through the policy and a modelled fleet, in virtual time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from policies import Fleet, Policy
from policies.backtest.fault_model import Reality, parse_reality
from policies.backtest.replay import ReplayRun
from policies.backtest.scores import calibration_of
from policies.backtest.workload import Arrival, compress, repeat, taggable
from shunter.backtest.bound import bound_or_reason
from shunter.backtest.differences import COLUMNS, differences, rows
from shunter.backtest.draws import draws, summary
from shunter.backtest.files import ROWS_MAX, read_known, write_assignments, write_rows
from shunter.backtest.parallel_runs import scored_beside
from shunter.backtest.plot import draw
from shunter.backtest.quotes import (
    CALIBRATION_ROUNDS,
    calibrated,
    lines_of_quotes,
    measured,
    table_of_quotes,
    write_errors,
)
from shunter.backtest.suite import (
    Scored,
    ScoredRun,
    Setting,
    assumed_pools,
    migrating,
    plans,
    scaled,
)
from shunter.backtest.tables import table_of_draws, tables, without_answer
from shunter.backtest.topic import read_topic
from shunter.client.kafka import run
from shunter.commands.audit_report import time_of
from shunter.console import (
    AsJson,
    Bootstrap,
    FleetFile,
    PolicyFile,
    Prefix,
    UserError,
    check_writable,
    err,
    named,
    out,
    read_declared,
    settings_from,
)
from shunter.render.figure import check_figure
from streams.config.declarations import load_fleet, load_policy
from streams.config.token_counting import load_token_counter
from streams.kafka.log import KafkaLog
from topics import Catalogue, Settings
from topics.admin.provisioning import partition_counts

Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="CSV of requests, may be gzipped; a packaged sample if not given."
    ),
]
FromTopic = Annotated[
    bool,
    typer.Option("--topic", help="Replay what the live ingest topic got, in place of a file."),
]
Start = Annotated[
    str | None,
    typer.Option("--from", help="With --topic: first day or time, ISO 8601, UTC if it says none."),
]
End = Annotated[str | None, typer.Option("--to", help="With --topic: the first not counted.")]
Compare = Annotated[
    Path | None, typer.Option("--compare", help="A second policy YAML, run beside the first.")
]
Differences = Annotated[
    Path | None,
    typer.Option(
        "--differences",
        help="CSV to write, with --compare: each request that the two placed or ended otherwise.",
    ),
]
Rate = Annotated[
    float, typer.Option("--rate", min=0.001, max=10_000, help="Divide arrival times by this.")
]
Repeat = Annotated[
    int,
    typer.Option("--repeat", min=1, max=1000, help="Replay the trace so often, time after time."),
]
StartsAt = Annotated[
    str | None,
    typer.Option(
        "--starts-at",
        help="ISO 8601: when the trace begins, where prices or emissions of the fleet move.",
    ),
]
FleetScale = Annotated[
    float, typer.Option("--fleet-scale", min=0.01, max=1000, help="Multiply each pool's replicas.")
]
Migrate = Annotated[
    bool,
    typer.Option("--migrate", help="Let replies migrate between a simulated pool's replicas."),
]
RealityFile = Annotated[
    Path | None,
    typer.Option("--reality", help="YAML: how the fleet differs from its declaration, untold."),
]
Assignments = Annotated[
    Path | None, typer.Option("--assignments", help="CSV to write: what Shunter did, row by row.")
]
Plot = Annotated[Path | None, typer.Option("--plot", help="PNG to draw.")]
Draws = Annotated[
    int,
    typer.Option(
        "--draws",
        min=0,
        max=1000,
        help="Run so often by device constants drawn from their error, untold.",
    ),
]
QuoteShare = Annotated[
    float | None,
    typer.Option(
        "--quotes",
        min=0.001,
        max=1,
        help="Let this share of the requests take a quote, and tell what was kept and paid.",
    ),
]
QuoteErrors = Annotated[
    Path | None,
    typer.Option(
        "--quote-errors",
        help="With --quotes: measure errors of promises on one half of them, judge the other, and"
        " write them as YAML for the policy's `quotes`.",
    ),
]
Baselines = Annotated[bool, typer.Option("--baselines/--no-baselines", help="Run the baselines.")]
Bound = Annotated[bool, typer.Option("--bound/--no-bound", help="Compute the lower bound.")]


def backtest(
    trace: Trace = None,
    topic: FromTopic = False,
    start: Start = None,
    end: End = None,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    compare: Compare = None,
    differing: Differences = None,
    rate: Rate = 1.0,
    times: Repeat = 1,
    starts_at: StartsAt = None,
    fleet_scale: FleetScale = 1.0,
    migrate: Migrate = False,
    reality: RealityFile = None,
    assignments: Assignments = None,
    plot: Plot = None,
    baselines: Baselines = True,
    bound: Bound = True,
    draw_count: Draws = 0,
    quotes: QuoteShare = None,
    quote_errors: QuoteErrors = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace in virtual time: cost, SLO attainment, baselines and a lower bound.

    Example: shunter policy backtest --trace trace.csv.gz --rate 10 --fleet-scale 10
    """
    settings = settings_from(
        fleet=fleet, policy=policy, bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix
    )
    declared = _declared(settings.fleet, starts_at, migrate)
    live = load_policy(settings.policy)
    _check(topic, trace, start or end, differing, compare, quotes, quote_errors)
    _check_alone(quotes, compare=compare, assignments=assignments, plot=plot, draws=draw_count)
    check_writable(differing, assignments, quote_errors)
    check_figure(plot)
    second = load_policy(compare) if compare else None
    if topic:
        arrivals = _of_topic(settings, declared, live, start, end)
    else:
        arrivals = read_known(trace, declared, live)
    arrivals = compress(_repeated(_within(arrivals, declared, second), times), rate)
    scaled_up, keeps = scaled(declared, fleet_scale), differing is not None
    setting = Setting(arrivals, scaled_up, live, _reality(reality), keeps_candidates=keeps)
    _check_pools(setting, reality)
    if quotes is not None:
        _quoted(setting, quotes, quote_errors, as_json=as_json)
        return
    scored, own = _run(setting, with_baselines=baselines, second=second)
    limit_usd, no_limit = bound_or_reason(setting) if bound else (None, None)
    _write(setting, own, assignments, differing)
    if plot is not None:
        draw(plot, scored, limit_usd)
    report: dict[str, Any] = {
        "requests": len(setting.arrivals),
        "rate": rate,
        "repeat": times,
        "fleet_scale": fleet_scale,
        "migrate": migrate,
        "policies": {each.name: each.scores for each in scored},
        "lower_bound_usd": limit_usd,
        "lower_bound_note": no_limit,
        "calibration": calibration_of(own[0].outcomes),
        "assumed_pools": assumed_pools(setting.fleet),
    }
    report |= _besides(setting, own, draw_count)
    _show(scored, report, as_json=as_json)


def _besides(setting: Setting, own: Sequence[ReplayRun], draw_count: int) -> dict[str, Any]:
    """Return what the report has besides, where it was asked for."""
    found: dict[str, Any] = {}
    if draw_count:
        found["draws"] = {"count": draw_count, "of": summary(list(draws(setting, draw_count)))}
    if len(own) > 1:
        found["differences"] = differences(own[0], own[1])
    return found


def _declared(path: Path | None, starts_at: str | None, migrate: bool) -> Fleet:
    """Return the fleet with its series in the trace's time, which counts from 0.

    With ``migrate`` the replies of its simulated pools do so.
    """
    fleet = load_fleet(path)
    if migrate:
        fleet = migrating(fleet)
    if starts_at is None:
        if any(series.moves for series in fleet.series.values()):
            raise UserError("the fleet's prices move: give --starts-at, when the trace begins")
        return fleet
    return fleet.seen_from(time_of(starts_at, 0.0))


def _check(
    topic: bool,
    trace: Path | None,
    span: str | None,
    differing: Path | None,
    compare: Path | None,
    quotes: float | None,
    quote_errors: Path | None,
) -> None:
    """Raise UserError where options contradict each other."""
    if topic and trace is not None:
        raise UserError("give --trace or --topic, not both")
    if not topic and span is not None:
        raise UserError("--from and --to are of --topic; add it")
    if quote_errors is not None and quotes is None:
        raise UserError("--quote-errors is of --quotes; add it")
    if differing is not None and compare is None:
        raise UserError("--differences is of --compare; add it")


def _check_alone(quotes: float | None, **others: Path | int | None) -> None:
    """Raise UserError where options are given that ``--quotes`` has no part in."""
    given = [f"--{name}" for name, value in others.items() if value]
    if quotes is not None and given:
        raise UserError(f"--quotes tells of quotes alone: leave out {', '.join(given)}")


def _check_pools(setting: Setting, reality: Path | None) -> None:
    unknown = setting.reality.unknown_pools(setting.fleet)
    if unknown:
        raise UserError(f"{reality}: no such pool in the fleet: {', '.join(unknown)}")


def _quoted(setting: Setting, share: float, errors: Path | None, *, as_json: bool) -> None:
    """Tell what came of quotes, under the policy's errors or under measured ones."""
    if errors is None:
        report = measured(setting, share)
    else:
        report, policy = calibrated(setting, share, CALIBRATION_ROUNDS, _tell)
        write_errors(errors, policy)
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        out.print(table_of_quotes(report))
        for line in lines_of_quotes(report):
            out.print(line, highlight=False)


def _tell(line: str) -> None:
    err.print(line, highlight=False)


def _run(
    setting: Setting, *, with_baselines: bool, second: Policy | None
) -> tuple[list[Scored], list[ReplayRun]]:
    """Return the figures of each run, and Shunter's own runs; say how long each took."""
    planned = plans(setting, with_baselines=with_baselines, compared=second)
    own: list[ReplayRun] = []
    scored: list[Scored] = []
    for each, took_s in scored_beside(planned, ours=1 if second is None else 2):
        _tell(f"{each.name}: {took_s:.1f} s")
        scored.append(each)
        if isinstance(each, ScoredRun):
            own.append(each.run)
    return scored, own


def _write(
    setting: Setting, own: list[ReplayRun], assignments: Path | None, differing: Path | None
) -> None:
    if assignments is not None:
        with_cached = setting.reality.prefix_cache
        write_assignments(assignments, own[0].outcomes, with_cached=with_cached)
    if differing is not None:
        write_rows(differing, COLUMNS, rows(own[0], own[1]))


def _of_topic(
    settings: Settings, fleet: Fleet, policy: Policy, start: str | None, end: str | None
) -> list[Arrival]:
    """Return the requests of a range of the ingest topic, and say what of it was left out."""
    counts = run(partition_counts(settings, [Catalogue(settings).requests]))
    settings = settings.model_copy(update={"partitions": counts[Catalogue(settings).requests]})
    catalogue, times = Catalogue(settings), (time_of(start, 0.0), time_of(end, math.inf))
    tokens = load_token_counter(fleet)
    found = run(read_topic(KafkaLog(settings), catalogue, fleet, policy, tokens, *times))
    if not found.arrivals:
        raise UserError(f"{catalogue.requests} holds no request of that time that could be placed")
    _tell(
        f"{len(found.arrivals)} requests; {found.left_out} left out that are unreadable or of no"
        f" known class or model; of {found.unanswered} no result tells the reply's length"
    )
    return found.arrivals


def _within(arrivals: list[Arrival], fleet: Fleet, compared: Policy | None) -> list[Arrival]:
    """Return the requests that the compared policy decides on, too, and say how many others are."""
    if compared is None:
        return arrivals
    kept = taggable(arrivals, fleet, compared)
    if not kept:
        raise UserError("--compare rejects each request before it decides: by class or bound")
    if outside := len(arrivals) - len(kept):
        why = "--compare rejects them before it decides, by class or bound"
        _tell(f"{outside} left out of both: {why}")
    return kept


def _repeated(arrivals: list[Arrival], times: int) -> list[Arrival]:
    if len(arrivals) * times > ROWS_MAX:
        raise UserError(f"--repeat {times} makes more than {ROWS_MAX:,} requests; repeat less")
    return repeat(arrivals, times)


def _reality(path: Path | None) -> Reality:
    if path is None:
        return Reality()
    return parse_reality(read_declared(path), named(path))


def _show(scored: list[Scored], report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(report).decode())
        return
    for table in tables(scored):
        out.print(table)
        out.print()
    if "draws" in report:
        out.print(table_of_draws(report["draws"]["of"], report["draws"]["count"]))
        out.print()
    for line in without_answer(scored):
        out.print(line)
    limit_usd = report["lower_bound_usd"]
    if limit_usd:
        ratio = scored[0].scores["cost_usd"] / limit_usd
        out.print(f"lower bound: {limit_usd:.4f} US dollars; shunter at {ratio:.2f} times that")
    if report["lower_bound_note"]:
        out.print(f"no lower bound: {report['lower_bound_note']}")
    kept = report["calibration"]
    if kept["met_of_promised_95"] is not None:
        out.print(
            f"calibration: of the requests promised 95 % or more, {kept['met_of_promised_95']:.2%}"
            f" met their SLO; {kept['promised']:.2%} promised on average, {kept['met']:.2%} met"
        )
    if assumed := report["assumed_pools"]:
        out.print(f"assumed, since no servers on such devices were measured: {', '.join(assumed)}")
    if "differences" in report:
        found = report["differences"]
        first, second = found["cost_usd"]
        out.print(
            f"compared: {found['placed_otherwise']} requests placed otherwise; {first:.4f} and"
            f" {second:.4f} US dollars; SLO met by the first alone"
            f" {found['attained_only_by_first']}, by the second alone"
            f" {found['attained_only_by_second']}"
        )
