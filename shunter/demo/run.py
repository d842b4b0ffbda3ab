"""One run of the demo from start to end."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies import Fleet, Policy, compile_options
from shunter.audit import Findings, Keyring
from shunter.audit.topic import verify_topic
from shunter.client.kafka import tail
from shunter.console import settings_from
from shunter.demo.check import judge
from shunter.demo.door import open_door
from shunter.demo.installation import (
    Plan,
    create_topics,
    installation_key,
    kafka_of,
    keep_up,
    log_to,
    stop,
    traces_of,
)
from shunter.demo.ledger import Ledger, read_ledger
from shunter.demo.machine import TEMPOS, USUAL, WHOLE_TEMPOS, choose, told
from shunter.demo.premium import premium_costs
from shunter.demo.rules import Rules
from shunter.demo.savings import savings_of
from shunter.demo.scaling import fleet_text, policy_text
from shunter.demo.show import Show
from shunter.demo.summary import summarize
from shunter.demo.system import System, members_of
from shunter.demo.trace import TraceRow, load_rows, request_of
from shunter.demo.traces import Jaeger
from shunter.demo.traffic import Traffic
from shunter.demo.watch import Watch
from streams.config.declarations import load_fleet, load_policy
from streams.kafka.log import KafkaLog
from streams.live import LiveView
from topics import Catalogue, Settings
from topics.embedded_broker.settings import HOST, free_port


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """The outcome of the demo, while the system is still up."""

    figures: dict[str, Any]
    ledger: Ledger
    settings: Settings
    run_dir: Path
    is_good: bool
    jaeger: Jaeger | None = None
    page: str = ""
    door: str = ""
    """URL of the gateway of a demo that stays up; empty if there is none."""
    savings: dict[str, Any] | None = None
    """The savings report, None if it could not be made."""


@dataclass(frozen=True, slots=True)
class _Case:
    """The replayed requests, and the yardsticks for them."""

    plan: Plan
    rows: list[TraceRow]
    requests: Mapping[str, Mapping[str, Any]]
    fleet: Fleet
    policy: Policy
    rules: Rules

    @property
    def first_speed(self) -> float:
        """The speed that the processes are started for."""
        return USUAL.speed if self.plan.speed is None else self.plan.speed

    def of(self, rows: list[TraceRow]) -> "_Case":
        """Return the case with these rows alone."""
        return replace(self, rows=rows, requests={row.id: self.requests[row.id] for row in rows})


def run_demo(plan: Plan, show: Show, tell: Callable[[DemoOutcome], object]) -> bool:
    """Start everything, replay the trace, check, report, and stop everything.

    Args:
        plan: the options.
        show: receives the progress.
        tell: receives the outcome while the system is still up.

    Returns:
        Whether every check held.

    Raises:
        UserError: something can't be started, or keeps failing.
        AdminError, LogError, KafkaError: Kafka can't be used.
    """
    case = _prepare(plan)
    run_dir = Path(tempfile.mkdtemp(prefix="shunter-demo-"))
    log_to(run_dir / "demo.log")
    is_over = False
    try:
        with show, contextlib.ExitStack() as stack:
            # Before anything is started: without a Jaeger the demo is not what was asked for.
            traces = traces_of(plan, run_dir, stack)
            settings = _settings(case, run_dir, stack, show)
            outcome = asyncio.run(_run(case, settings, run_dir, show, tell, traces))
            is_over = outcome.is_good and outcome.figures["restarts"] == 0
    except KeyboardInterrupt:
        is_over = True
        raise
    finally:
        # After a failure, the processes' logs are worth keeping.
        if is_over or not (run_dir / "router.log").exists():
            shutil.rmtree(run_dir, ignore_errors=True)
        else:
            show.say(f"Logs of the processes: {run_dir}")
    return outcome.is_good


def _prepare(plan: Plan) -> _Case:
    rows = load_rows(plan.requests)
    requests = {row.id: request_of(row) for row in rows}
    fleet, policy = load_fleet(plan.fleet), load_policy(None)
    return _Case(plan, rows, requests, fleet, policy, Rules(fleet, policy))


def _settings(case: _Case, run_dir: Path, stack: contextlib.ExitStack, show: Show) -> Settings:
    """Start a Kafka if none is named, and return the settings of the system."""
    own = kafka_of(case.plan, stack, show)
    return settings_from(**own, **_declare(case, case.first_speed, run_dir), instance="demo")


def _declare(case: _Case, speed: float, run_dir: Path) -> dict[str, Path]:
    """Write the declarations of a speed, for the processes that are started next."""
    files = {name: run_dir / f"{name}.yaml" for name in ("fleet", "policy")}
    files["fleet"].write_text(fleet_text(case.fleet, speed), encoding="utf-8")
    files["policy"].write_text(policy_text(case.policy, speed), encoding="utf-8")
    return files


async def _run(
    case: _Case,
    settings: Settings,
    run_dir: Path,
    show: Show,
    tell: Callable[[DemoOutcome], object],
    traces: Jaeger | None,
) -> DemoOutcome:
    began_at = time.monotonic()
    await create_topics(settings, case.fleet.pools)
    trusted, more = installation_key(run_dir)
    more |= {} if traces is None else traces.variables()
    system = System(run_dir, settings, show.say, more)
    page_port = free_port()
    try:
        _start(system, case, page_port)
        show.say(f"Starting the router and {len(case.fleet.pools)} workers ...")
        # At the speed of the demo, as the system has it.
        options, policy = compile_options(load_fleet(settings.fleet)), load_policy(settings.policy)
        live = LiveView(Catalogue(settings), options, policy, since=time.time())
        page = f"http://{HOST}:{page_port}/"
        watch = Watch(Catalogue(settings), set(case.requests), live, page)
        async with tail(settings, watch.topics, from_beginning=True) as reader:
            traffic = Traffic(
                settings, run_dir, case.fleet, case.policy, system, watch, show, reader
            )
            await traffic.open_lanes()
            show.say(f"The live page, while this runs: {page}")
            case, speed, machine = await _set_tempo(case, settings, traffic, page_port)
            show.say(f"Replaying {len(case.rows):,} requests at {speed:g} x their speed ...")
            since = time.time()
            await traffic.replay(case.rows, case.requests, speed)
        # Beside what follows: it is another process.
        savings = asyncio.create_task(
            asyncio.to_thread(savings_of, settings, since, run_dir / "savings.html")
        )
        ledger = await read_ledger(settings)
        keyring = Keyring(installations=frozenset({trusted}))
        findings = await verify_topic(KafkaLog(settings), Catalogue(settings), keyring=keyring)
        ledger = ledger.without(watch.warm)
        outcome = replace(
            _judge(case, ledger, findings, settings, run_dir, speed),
            jaeger=traces,
            page=page,
            savings=await savings,
        )
        outcome.figures["machine"] = machine
        outcome.figures["trail"]["trusted"] = trusted
        outcome.figures["restarts"] = system.restarts
        outcome.figures["wall_s"] = round(time.monotonic() - began_at, 1)
        if case.plan.keep and case.plan.gateway:
            outcome = replace(outcome, door=await open_door(system, show.say))
        tell(outcome)
        if case.plan.keep:
            await keep_up(system)
        return outcome
    finally:
        await stop(case.plan, system, settings, case.fleet.pools, show)


def _start(system: System, case: _Case, page_port: int) -> None:
    for name, command in members_of(case.fleet.pools):
        system.start(name, command, page_port if name == "router" else 0)


async def _set_tempo(
    case: _Case, settings: Settings, traffic: Traffic, page_port: int
) -> tuple[_Case, float, dict[str, Any] | None]:
    """Measure the machine, unless the user names a speed, and set the tempo by that.

    Returns:
        The case with the rows to send, the speed, and the measure for programs.
    """
    plan = case.plan
    if plan.speed is not None:
        return case, plan.speed, None
    measure = await traffic.measure()
    tempos = TEMPOS if plan.requests is None else WHOLE_TEMPOS
    choice = choose(case.rows, case.policy, measure.mixed_per_s, tempos)
    speed = choice.tempo.speed
    traffic.show.say(told(measure, choice, len(case.rows)))
    if speed != case.first_speed:
        traffic.show.say(f"Starting the processes anew, for {speed:g} x the speed ...")
        traffic.system.stop()
        _declare(case, speed, traffic.run_dir)
        options = compile_options(load_fleet(settings.fleet))
        traffic.watch.live.change(options, load_policy(settings.policy))
        _start(traffic.system, case, page_port)
        await traffic.open_lanes()
    case = case.of(choice.rows)
    traffic.watch.names = set(case.requests)
    machine = {
        "burst": measure.requests,
        "took_s": round(measure.took_s, 3),
        "per_s": round(measure.per_s, 1),
        "expected_attainment": round(choice.expected, 4),
    }
    return case, speed, machine


def _judge(
    case: _Case,
    ledger: Ledger,
    findings: Findings,
    settings: Settings,
    run_dir: Path,
    speed: float,
) -> DemoOutcome:
    verdict = judge(case.requests, ledger, case.rules)
    figures = summarize(
        case.rows,
        ledger,
        verdict,
        case.policy.faster(speed),
        premium_costs(ledger, compile_options(case.fleet)),
        pools=list(case.fleet.pools),
        speed=speed,
    )
    figures["assumed_pools"] = [
        name for name, served in compile_options(case.fleet).by_pool.items() if served[0].is_assumed
    ]
    figures["trail"] = {
        "records": findings.records,
        "roots": findings.roots,
        "chains": len(findings.heads),
        "problems": dict(findings.counts),
    }
    told = [f"the audit trail: {p.kind} {p.where}: {p.message}" for p in findings.problems]
    figures["problems"] = figures["problems"] + told
    is_good = verdict.is_good and findings.is_good
    return DemoOutcome(figures, ledger, settings, run_dir, is_good)
