"""Assemble `shunter worker`."""

import random
from collections.abc import Callable, Iterable
from typing import NoReturn

from policies import Option, Options, Policy, Pool, compile_options
from policies.config.fleet import CPUBackendConfig as DeclaredCPU
from policies.config.fleet import OpenAIBackendConfig as DeclaredOpenAI
from policies.learning.feedback import Experience
from streams.cancellation.index import CancellationFollower, Cancellations
from streams.config.declarations import load_fleet, load_policy
from streams.config.plugins import load_judges
from streams.engine.clock import BrokerClock, Clock, SystemClock
from streams.evidence.records import EvidenceWriter
from streams.hosting.assembly import (
    check_topics,
    follow,
    make_signer,
    signing_services,
    telling_services,
)
from streams.hosting.services import StartedTogether, TelemetryService, run_app
from streams.kafka.instance_name import claim_name
from streams.metrics import Metrics
from streams.metrics.gauges import Readings, span_gauges
from streams.tracing.setup import from_environment
from topics import Catalogue, Settings, Topic
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
    return SimulatedBackend(options, clock, usual_tokens)


def _served_by(pool: str, options: Options) -> tuple[Option, ...]:
    if pool not in options.by_pool:
        known = ", ".join(sorted(options.by_pool))
        raise UnknownPoolError(f"the fleet has no pool {pool!r}; it has {known}")
    return options.by_pool[pool]


def _topics(catalogue: Catalogue, pool: str) -> list[Topic]:
    """Return the topics that a worker uses: it may not even describe others."""
    own = worker_role(catalogue, pool).topics()
    return [topic for topic in catalogue.topics([pool]) if topic.name in own]


def _metrics(
    settings: Settings, options: Options, policy: Policy, gauges: Iterable[Callable[[], Readings]]
) -> Metrics:
    metrics = Metrics(
        options, policy, tenants_max=settings.metrics_tenants_max, profile_of=profile_of
    )
    for source in gauges:
        metrics.gauges.read_from(source)
    return metrics


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
    fleet, policy = load_fleet(settings.fleet), load_policy(settings.policy)
    options = compile_options(fleet)
    served = _served_by(pool, options)
    clock = BrokerClock(SystemClock())
    backend: Backend = (
        Evacuation(served) if evacuates else make_backend(fleet.pools[pool], served, policy, clock)
    )
    catalogue = Catalogue(settings)
    check_topics(settings, _topics(catalogue, pool))
    # Kept until the process ends, and the name with it.
    claim = claim_name(settings, f"worker of {pool}", [catalogue.worker_group(pool)])
    settings = claim.settings
    breakers = Breakers(pool, [option.variant for option in served], backend, clock)
    uniform = random.SystemRandom().random
    attempts = Attempts(backend, breakers, clock, attempts_max=policy.attempts_max, uniform=uniform)
    telemetry = from_environment("worker", settings.instance)
    writer = f"worker/{pool}/{settings.instance}"
    signer = make_signer(settings, writer, clock)
    evidence_writer = EvidenceWriter(
        catalogue, writer, signer.digests, policy.version, options.version
    )
    second = SecondRuns(evidence_writer, telemetry, load_judges())
    ending = OutcomeWriter(evidence_writer, telemetry, policy.attempts_max, read_host(), second)
    cancellations, experience = Cancellations(clock), Experience(served[0].failure_rate)
    publisher = StreamPublisher(settings, clock)
    spans = [WorkSpans(telemetry, catalogue, clock, pool)]
    worker = Worker(
        *(pool, served, attempts, evidence_writer, ending, clock, cancellations),
        Streams(publisher),
        in_flight_max=settings.in_flight_max,
        in_flight_bytes_max=settings.in_flight_bytes_max,
        share_of=lambda tenant: policy.limits_of(tenant).share,
    )
    gauges = [worker_gauges(pool, worker, breakers), span_gauges(telemetry)]
    metrics = _metrics(settings, options, policy, gauges)
    run_app(
        f"worker-{pool}",
        settings,
        [
            TelemetryService(telemetry),
            *telling_services("worker", settings, metrics, clock),
            StartedTogether(
                *signing_services(settings, signer, metrics, clock),
                follow(CancellationFollower(settings, cancellations), metrics),
                BackendService(backend),
            ),
            BreakerService(breakers),
            publisher,
            DrainingService(worker, settings, signer, metrics, [*spans, Learning(experience)]),
            Heartbeat(
                *(settings, served[0], worker, backend, breakers, experience, clock),
                options.version,
                state="draining" if evacuates else "up",
            ),
        ],
        is_ready=lambda: breakers.is_any_closed and not worker.is_draining,
        metrics=metrics.page,
    )
