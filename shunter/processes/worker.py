"""Assemble `shunter worker`."""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable, Collection, Iterable
from typing import NoReturn

from policies import (
    DeclarationError,
    Option,
    Options,
    Policy,
    Pool,
    Situation,
    compile_options,
    same_hardware,
    situation,
)
from policies.config.fleet import CPUBackendConfig as DeclaredCPU
from policies.config.fleet import OpenAIBackendConfig as DeclaredOpenAI
from policies.learning.feedback import Experience
from shunter.logs.policies import read_policy_log
from streams.cancellation.index import CancellationFollower, Cancellations
from streams.config.active_policy import ActivePolicy, DecisionContext
from streams.config.declarations import Declarations, declared_by, load_fleet, load_policy
from streams.config.plugins import load_judges
from streams.config.policy_follower import PolicyFollower
from streams.config.token_counting import TokenCounter
from streams.engine.clock import BrokerClock, Clock, SystemClock
from streams.engine.stage import Observer
from streams.evidence.records import EvidenceWriter
from streams.hosting.assembly import (
    check_topics,
    follow,
    make_signer,
    signing_services,
    telling_services,
)
from streams.hosting.services import ServiceGroup, TelemetryService, run_app
from streams.kafka.follower import TopicFollower
from streams.kafka.instance_name import claim_name
from streams.metrics import Metrics
from streams.metrics.gauges import Readings, span_gauges
from streams.tracing.setup import from_environment
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, PolicyLog, Settings, Topic
from topics.admin.acls import worker as worker_role
from workers.backends.base import Backend
from workers.backends.cpu.backend import CPUBackend
from workers.backends.drain import Evacuation
from workers.backends.openai.backend import OpenAIBackend
from workers.backends.simulated.backend import SimulatedBackend
from workers.feedback import Learning
from workers.gauges import profile_of, worker_gauges
from workers.heartbeat import Heartbeat
from workers.machine import read_host
from workers.resilience.attempts import Attempts
from workers.resilience.circuit_breaker import Breakers
from workers.services import BackendService, BreakerService, DrainingService
from workers.spans import WorkSpans
from workers.stage.chunks import StreamPublisher, Streams
from workers.stage.outcomes import OutcomeWriter
from workers.stage.second_runs import SecondRuns
from workers.stage.worker import Worker

logger = logging.getLogger(__name__)


class UnknownPoolError(LookupError):
    """The fleet has no such pool."""


def make_backend(pool: Pool, options: tuple[Option, ...], policy: Policy, clock: Clock) -> Backend:
    """Return the backend that a pool declares.

    Raises:
        BackendSettingError: it can't be made of what is declared.
    """
    if isinstance(pool.backend, DeclaredOpenAI):
        return OpenAIBackend(pool.backend, options, clock)
    if isinstance(pool.backend, DeclaredCPU):
        return CPUBackend(pool.backend, options, clock)
    usual_tokens = {name: each.output_tokens for name, each in policy.classes.items()}
    return SimulatedBackend(options, clock, usual_tokens, pool.backend.times.factors)


def served_by(pool: str, options: Options) -> tuple[Option, ...]:
    """Return a pool's options. Raises UnknownPoolError."""
    if pool not in options.by_pool:
        known = ", ".join(sorted(options.by_pool))
        raise UnknownPoolError(f"the fleet has no pool {pool!r}; it has {known}")
    return options.by_pool[pool]


def _topics(catalogue: Catalogue, pool: str) -> list[Topic]:
    """Return the topics that a worker uses: it may not even describe others."""
    own = worker_role(catalogue, pool).topics()
    return [topic for topic in catalogue.topics([pool]) if topic.name in own]


def _backend(pool: str, declared: Declarations, clock: Clock, *, evacuates: bool) -> Backend:
    served = served_by(pool, compile_options(declared.fleet))
    if evacuates:
        return Evacuation(served)
    return make_backend(declared.fleet.pools[pool], served, declared.policy, clock)


def read_said(settings: Settings) -> PolicyLog:
    """Return what the policies topic has, outside an event loop.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
    """
    return asyncio.run(read_policy_log(settings))


def in_force(said: PolicyLog, own: Declarations, pool: str) -> Declarations:
    """Return the newest declarations of the policies topic that this process can use, else its own.

    A fleet without the pool leaves the process with its own.
    """
    for change in reversed(said.changes):
        try:
            declared = declared_by(said, change, own)
        except DeclarationError:
            continue
        if pool not in declared.fleet.pools:
            return own
        return declared
    return own


def _policies(
    settings: Settings, active: ActivePolicy, own: Declarations, clock: Clock
) -> PolicyFollower:
    async def check(_pools: Collection[str]) -> None:
        """Other pools' topics are none of a worker's business."""

    return PolicyFollower(settings, active, own, check, clock)


def _end_if_other(pool: str, served: tuple[Option, ...], here: Situation) -> None:
    """End the process where its backend is not what the fleet in force declares any more.

    It finishes what runs; who supervises it starts it anew, with the backend of that fleet.
    """
    declared = here.options.by_pool.get(pool)
    if declared and not same_hardware(declared, served):
        logger.critical(
            "fleet %s declares other hardware or variants for %s: this worker ends, to be started"
            " anew with them",
            *(here.options.version, pool),
        )
        os.kill(os.getpid(), signal.SIGTERM)


def _metrics(
    settings: Settings, options: Options, policy: Policy, gauges: Iterable[Callable[[], Readings]]
) -> Metrics:
    metrics = Metrics(
        options, policy, tenants_max=settings.metrics_tenants_max, profile_of=profile_of
    )
    for source in gauges:
        metrics.gauges.read_from(source)
    return metrics


def _obstacle(worker: Worker, breakers: Breakers) -> str | None:
    if worker.is_draining:
        return "the worker drains"
    return None if breakers.is_any_closed else "no circuit of a variant is closed"


def run_worker(pool: str, settings: Settings, *, evacuates: bool = False) -> NoReturn:
    """Serve a pool until stopped, or hand the requests in its lanes to other pools.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        DeclarationError: fleet or policy can't be used.
        UnknownPoolError: the fleet has no such pool.
        BackendSettingError: its backend can't be made of what it declares.
        NameTakenError: another worker of the pool has the name that the settings give.
        TelemetryError: the ``OTEL_*`` variables ask for what can't be had.
    """
    own = Declarations(load_fleet(settings.fleet), load_policy(settings.policy))
    catalogue, clock = Catalogue(settings), BrokerClock(SystemClock())
    # What is wrong with its own files is told before Kafka is looked for.
    backend = _backend(pool, own, clock, evacuates=evacuates)
    check_topics(settings, _topics(catalogue, pool))
    declared = own if evacuates else in_force(read_said(settings), own, pool)
    if declared is not own:
        backend = _backend(pool, declared, clock, evacuates=False)
    # Kept until the process ends, and the name with it.
    claim = claim_name(settings, f"worker of {pool}", [catalogue.worker_group(pool)])
    follows = None if evacuates else own
    _run_worker(pool, claim.settings, declared, backend, clock, follows)


def _run_worker(
    pool: str,
    settings: Settings,
    declared: Declarations,
    backend: Backend,
    clock: BrokerClock,
    follows: Declarations | None,
) -> NoReturn:
    """Serve by what is declared; ``follows`` fills what changes leave open, None follows none."""
    policy, options = declared.policy, compile_options(declared.fleet)
    catalogue, served = Catalogue(settings), served_by(pool, options)
    breakers = Breakers(pool, [option.variant for option in served], backend, clock)
    telemetry = from_environment("worker", settings.instance)
    writer = f"worker/{pool}/{settings.instance}"
    signer = make_signer(settings, writer, clock)
    active = _active_policy(
        situation(options, policy),
        EvidenceWriter(catalogue, writer, signer.digests, policy.version, options.version),
    )
    cancellations, experience = Cancellations(clock), Experience(served[0].failure_rate)
    publisher = StreamPublisher(settings, clock)
    worker = _stage(
        settings, pool, active, backend, breakers, telemetry, cancellations, publisher, clock
    )
    keep = active.keep(worker.take_context)
    gauges = [worker_gauges(pool, worker, backend, breakers), span_gauges(telemetry)]
    metrics = _metrics(settings, options, policy, gauges)
    active.tell(metrics.change)
    active.tell(lambda here: _end_if_other(pool, served, here))
    followers: list[TopicFollower] = [CancellationFollower(settings, cancellations)]
    followers += [] if follows is None else [_policies(settings, active, follows, clock)]
    spans = WorkSpans(telemetry, catalogue, clock, pool, served[0].provider)
    observers: list[Observer] = [spans, Learning(experience)]
    drain = DrainingService(worker, settings, signer, metrics, observers, keep, served[0].notice_s)
    run_app(
        f"worker-{pool}",
        settings,
        [
            TelemetryService(telemetry),
            *telling_services("worker", settings, metrics, clock),
            ServiceGroup(
                *signing_services(settings, signer, metrics, clock),
                *(follow(follower, metrics) for follower in followers),
                BackendService(backend),
            ),
            BreakerService(breakers),
            publisher,
            drain,
            Heartbeat(
                *(settings, pool, worker, backend, breakers, experience, clock),
                state="draining" if follows is None else "up",
            ),
        ],
        obstacle=lambda: _obstacle(worker, breakers),
        work_s_max=drain.drain_s_max,
        metrics=metrics.page,
    )


def _active_policy(here: Situation, evidence_writer: EvidenceWriter) -> ActivePolicy:
    # No tokens are counted here, and no tokenizer has to be where workers run.
    return ActivePolicy(
        DecisionContext(here, evidence_writer, TokenCounter({})), lambda _fleet: TokenCounter({})
    )


def _stage(
    settings: Settings,
    pool: str,
    active: ActivePolicy,
    backend: Backend,
    breakers: Breakers,
    telemetry: Telemetry,
    cancellations: Cancellations,
    publisher: StreamPublisher,
    clock: Clock,
) -> Worker:
    """Return the stage that runs a pool's requests, by the policy in force."""
    here, evidence_writer = active.situation, active.terms.evidence_writer
    attempts_max = here.policy.attempts_max
    uniform = random.SystemRandom().random
    attempts = Attempts(backend, breakers, clock, attempts_max=attempts_max, uniform=uniform)
    second = SecondRuns(evidence_writer, telemetry, load_judges())
    ending = OutcomeWriter(evidence_writer, telemetry, attempts_max, read_host(), second)
    served = served_by(pool, here.options)
    worker = Worker(
        *(pool, served, attempts, evidence_writer, ending, clock, cancellations),
        Streams(publisher),
        in_flight_max=settings.in_flight_max,
        in_flight_bytes_max=settings.in_flight_bytes_max,
        share_of=lambda tenant: active.situation.policy.limits_of(tenant).share,
    )
    worker.take_context(active.terms)
    return worker
