"""One run of the demo from start to end."""

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from policies import Fleet, Policy, compile_options
from shunter.audit import Findings
from shunter.audit.topic import verify_topic
from shunter.client.kafka import Tail, tail
from shunter.console import UserError, settings_from
from shunter.demo.baseline import premium_cost_usd
from shunter.demo.check import judge
from shunter.demo.ledger import Ledger, read_ledger
from shunter.demo.replay import replay
from shunter.demo.rules import Rules
from shunter.demo.scaling import fleet_text, policy_text
from shunter.demo.show import Show
from shunter.demo.summary import summarize
from shunter.demo.system import System, log_tail, members_of
from shunter.demo.trace import TraceRow, load_rows, request_of
from shunter.demo.traces import Jaeger, jaeger
from shunter.demo.warmup import publish, warm_ups
from shunter.demo.watch import Watch
from streams.config.declarations import load_fleet, load_policy
from streams.kafka.log import KafkaLog
from streams.live import LiveView
from streams.logs import set_up_logging
from topics import Catalogue, Settings
from topics.admin.provisioning import apply
from topics.embedded_broker.broker import BrokerError, EmbeddedBroker

logger = logging.getLogger(__name__)

# The longest start, on a slow machine; with 2 cores it is 8 s.
START_S_MAX = 60.0
# After this long without progress, there will be none.
QUIET_S_MAX = 30.0
SETTLE_S_MAX = 10.0
CLEANED_S_MAX = 10.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """The user's options; None means the demo's default."""

    speed: float
    requests: int | None = None
    bootstrap_servers: str | None = None
    topic_prefix: str | None = None
    keep: bool = False
    traced: bool = False
    jaeger_program: Path | None = None


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """The outcome of the demo, while the system is still up."""

    figures: dict[str, Any]
    ledger: Ledger
    settings: Settings
    run_dir: Path
    is_good: bool
    jaeger: Jaeger | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """The replayed requests, and the yardsticks for them."""

    plan: Plan
    rows: list[TraceRow]
    requests: Mapping[str, Mapping[str, Any]]
    fleet: Fleet
    policy: Policy
    rules: Rules
    premium_usd: dict[str, float]


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
    _log_to(run_dir / "demo.log")
    is_over = False
    try:
        with show, contextlib.ExitStack() as stack:
            traces = None
            if plan.traced:
                # Before anything is started: without a Jaeger the demo is not what was asked for.
                log, page = run_dir / "jaeger.log", settings_from().jaeger_url
                traces = stack.enter_context(jaeger(page, plan.jaeger_program, log))
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
    fleet, policy = load_fleet(None), load_policy(None)
    rules = Rules(fleet, policy)
    costs = premium_cost_usd(
        [(row, requests[row.id]) for row in rows], compile_options(fleet), rules
    )
    premium_usd = {row.id: costs.get(row.id, 0.0) for row in rows}
    return _Case(plan, rows, requests, fleet, policy, rules, premium_usd)


def _log_to(path: Path) -> None:
    """Send the Kafka client's warnings to a file, not through the live view."""
    with contextlib.redirect_stderr(path.open("a", encoding="utf-8")):
        set_up_logging("warning")
    logging.captureWarnings(capture=True)


def _settings(case: _Case, run_dir: Path, stack: contextlib.ExitStack, show: Show) -> Settings:
    """Start a Kafka if none is named, and return the settings of the system."""
    plan = case.plan
    own: dict[str, Any] = {"bootstrap_servers": plan.bootstrap_servers}
    prefix = f"demo-{secrets.token_hex(4)}"
    if plan.bootstrap_servers is None:
        show.say("Starting Apache Kafka ...")
        broker = EmbeddedBroker(announce=show.say)
        try:
            stack.enter_context(broker)
        except BrokerError as error:
            raise UserError(f"{error}\nOr name a Kafka that runs: --bootstrap-servers.") from error
        own = {"bootstrap_servers": broker.bootstrap_servers, "security_protocol": "PLAINTEXT"}
        prefix = "inference"
    for name, text in (
        ("fleet", fleet_text(case.fleet, plan.speed)),
        ("policy", policy_text(case.policy, plan.speed)),
    ):
        own[name] = run_dir / f"{name}.yaml"
        own[name].write_text(text, encoding="utf-8")
    return settings_from(**own, topic_prefix=plan.topic_prefix or prefix, instance="demo")


async def _run(
    case: _Case,
    settings: Settings,
    run_dir: Path,
    show: Show,
    tell: Callable[[DemoOutcome], object],
    traces: Jaeger | None,
) -> DemoOutcome:
    began_at = time.monotonic()
    await _create_topics(settings, case.fleet)
    more = {} if traces is None else traces.variables()
    system = System(run_dir, settings, show.say, more)
    try:
        for name, command in members_of(case.fleet.pools):
            system.start(name, command)
        show.say(f"Starting the router and {len(case.fleet.pools)} workers ...")
        live = LiveView(
            Catalogue(settings),
            # At the speed of the demo, as the system has it.
            compile_options(load_fleet(settings.fleet)),
            load_policy(settings.policy),
            since=time.time(),
        )
        watch = Watch(Catalogue(settings), case.premium_usd, len(case.rows), live)
        await _Replay(case, settings, run_dir, system, watch, show).run()
        ledger = await read_ledger(settings)
        findings = await verify_topic(KafkaLog(settings), Catalogue(settings))
        outcome = replace(_judge(case, ledger, findings, settings, run_dir), jaeger=traces)
        outcome.figures["restarts"] = system.restarts
        outcome.figures["wall_s"] = round(time.monotonic() - began_at, 1)
        tell(outcome)
        if case.plan.keep:
            await _keep(system)
        return outcome
    finally:
        show.say("Stopping ...")
        system.stop()
        if case.plan.bootstrap_servers is not None and not case.plan.keep:
            await _delete_topics(settings, case.fleet)


def _judge(
    case: _Case, ledger: Ledger, findings: Findings, settings: Settings, run_dir: Path
) -> DemoOutcome:
    warm = {each.id for each in warm_ups(case.fleet, settings.partitions)}
    ledger = ledger.without(warm)
    verdict = judge(case.requests, ledger, case.rules)
    figures = summarize(
        case.rows,
        ledger,
        verdict,
        case.policy.faster(case.plan.speed),
        case.premium_usd,
        pools=list(case.fleet.pools),
        speed=case.plan.speed,
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


async def _create_topics(settings: Settings, fleet: Fleet) -> None:
    report = await apply(settings, fleet.pools)
    found = [topic.name for topic in report.topics if topic.state != "created"]
    if found:
        raise UserError(
            f"{settings.bootstrap_servers} has topics of the prefix {settings.topic_prefix!r}"
            f" already ({found[0]} ...), and the demo shares none; choose another --topic-prefix"
        )


async def _delete_topics(settings: Settings, fleet: Fleet) -> None:
    """Delete the demo's topics on a foreign Kafka; if it is gone, leave them."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    try:
        async with asyncio.timeout(CLEANED_S_MAX):
            await admin.start()
            names = [topic.name for topic in Catalogue(settings).topics(fleet.pools)]
            await admin.delete_topics(names)
    except (KafkaError, TimeoutError) as error:
        logger.warning("the topics %s.* were left: %s", settings.topic_prefix, error)
    finally:
        await admin.close()


async def _keep(system: System) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            system.tend()
            await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class _Replay:
    """The traffic of a demo: from open lanes to the last result."""

    case: _Case
    settings: Settings
    run_dir: Path
    system: System
    watch: Watch
    show: Show

    async def run(self) -> None:
        """Return when each request has an end, or nothing moves any more."""
        async with tail(self.settings, self.watch.topics, from_beginning=True) as reader:
            await self._open_lanes(reader)
            self.show.say(
                f"Replaying {len(self.case.rows)} requests at {self.case.plan.speed:g} times"
                " the speed they arrived with ..."
            )
            await self._traffic(reader)
            await self._until(reader, self.watch.idle, SETTLE_S_MAX)

    async def _open_lanes(self, reader: Tail) -> None:
        if not await self._until(reader, self.watch.pools_up, START_S_MAX):
            down = self.watch.silent_pools() or list(self.case.fleet.pools)
            raise UserError(self._not_ready(f"{', '.join(down)}: no report", down[0]))
        requests = list(warm_ups(self.case.fleet, self.settings.partitions))
        await publish(self.settings, requests)
        wanted = {each.id for each in requests}
        if not await self._until(reader, lambda: wanted <= self.watch.warm, START_S_MAX):
            missing = ", ".join(sorted(wanted - self.watch.warm))
            raise UserError(self._not_ready(f"{missing}: no result", "router"))

    def _not_ready(self, what: str, member: str) -> str:
        log = self.run_dir / f"{member}.log"
        return f"{what} within {START_S_MAX:g} s; {log} ends with:\n{log_tail(log)}"

    async def _traffic(self, reader: Tail) -> None:
        pairs = [(row, self.case.requests[row.id]) for row in self.case.rows]
        publishing = asyncio.create_task(
            replay(self.settings, pairs, self.case.plan.speed, self.watch.acknowledged)
        )
        try:
            while len(self.watch.finished) < len(pairs):
                await self._turn(reader)
                if publishing.done():
                    publishing.result()
                if time.monotonic() - self.watch.moved_at > self._quiet_s_max():
                    self._tell_missing()
                    return
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    def _quiet_s_max(self) -> float:
        """Return the longest expected quiet time: a window that fills no more ends by itself."""
        if self.watch.held <= 0:
            return QUIET_S_MAX
        windows = [workload.window_s for workload in self.case.policy.classes.values()]
        return QUIET_S_MAX + max(windows) / self.case.plan.speed

    def _tell_missing(self) -> None:
        missing = [row for row in self.case.rows if row.id not in self.watch.finished]
        tasks = sorted({row.task for row in missing})
        self.show.say(
            f"Nothing has moved for {self._quiet_s_max():g} s: {len(missing)} of"
            f" {len(self.case.rows)} requests have no result ({', '.join(tasks)};"
            f" {missing[0].id} is the first), {self.watch.held} wait for a batch."
            f" Logs: {self.run_dir}"
        )

    async def _until(self, reader: Tail, reached: Callable[[], bool], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > end:
                return False
            await self._turn(reader)
        return True

    async def _turn(self, reader: Tail) -> None:
        for record in await reader.poll(POLL_S):
            self.watch.take(record)
        self.system.tend()
        self.show.update(self.watch)
