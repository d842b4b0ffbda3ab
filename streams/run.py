"""`shunter router`, put together: router, batcher and canceller over one view of the fleet."""

import asyncio
import secrets
from collections.abc import Iterable
from typing import NoReturn

from mode import Service

from policies import compile_options, situation
from streams.autoscaling import AutoscalingSignal
from streams.batcher import Batcher
from streams.cancellations import CancellationFollower, Cancellations
from streams.canceller import Canceller
from streams.clock import Clock, SystemClock
from streams.declarations import load_fleet, load_policy
from streams.digests import Digests, SaltFollower
from streams.fleet_follower import FleetFollower
from streams.heads import HeadsService
from streams.host import FollowerService, StageService, TelemetryService, run_app
from streams.kafka import KafkaLog
from streams.live.page import LivePage
from streams.metrics import Metrics, MetricsService
from streams.metrics.gauges import hold_gauges, target_gauges
from streams.notary import Notary
from streams.outgoing import Scribe
from streams.router import Router
from streams.stage import Observer, Stage
from streams.telemetry import from_environment
from streams.tokens import load_token_counter
from streams.transactor import Transactor
from topics import Catalogue, Settings, Topic, encode
from topics.access import router as router_role
from topics.admin import AdminError, partition_counts
from topics.signing_key import load_signing_key


def make_notary(settings: Settings, writer: str, clock: Clock) -> Notary:
    """Return the notary of a process, with the key that the settings name or one of its own.

    Raises:
        SigningKeyError: the key's file can't be used.
    """
    catalogue = Catalogue(settings)
    secret = settings.evidence_secret
    digests = Digests(
        catalogue,
        None if secret is None else secret.get_secret_value().encode(),
        secrets.token_bytes,
    )
    return Notary(catalogue, load_signing_key(settings.evidence_key), writer, clock, digests)


def notary_services(settings: Settings, notary: Notary) -> list[Service]:
    """Return what has to run, and before any stage, in a process that signs."""
    return [
        FollowerService(SaltFollower(settings, notary.digests)),
        HeadsService(settings, notary),
    ]


def transactor(
    settings: Settings, stage: Stage, notary: Notary, metrics: Metrics, *observers: Observer
) -> Transactor:
    """Return a transactor that drives the stage over the Kafka of these settings, and counts."""
    log = KafkaLog(settings, metrics.timed)
    metrics.watch(stage.group, log)
    return Transactor(
        log,
        stage,
        notary=notary,
        progress_topic=Catalogue(settings).progress,
        poll_s_max=settings.poll_s_max,
        poll_records_max=settings.poll_records_max,
        # From its first record on the broker counts; what comes before is quick.
        transaction_s_max=settings.transaction_timeout_ms / 1000 + 2.0,
        observers=[metrics.observer, *observers],
    )


def check_topics(settings: Settings, topics: Iterable[Topic]) -> None:
    """Make sure that the topics are there before anything relies on them.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing or has other partitions.
    """
    wanted = {topic.name: topic.partitions for topic in topics}
    found = asyncio.run(partition_counts(settings, wanted))
    for name, partitions in wanted.items():
        if found[name] != partitions:
            raise AdminError(
                f"topic {name} has {found[name]} partitions, where SHUNTER_PARTITIONS wants"
                f" {partitions}; set it to what the topics were created with"
            )


def run_router(settings: Settings) -> NoReturn:
    """Route requests and release batches until told to stop.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        DeclarationError: fleet or policy can't be used.
    """
    fleet = load_fleet(settings.fleet)
    options, policy = compile_options(fleet), load_policy(settings.policy)
    tokens = load_token_counter(fleet)
    catalogue = Catalogue(settings)
    # Not those that a router has no business with: it may not so much as see them.
    own = router_role(catalogue, options.by_pool).topics()
    topics = catalogue.topics(options.by_pool)
    check_topics(settings, [topic for topic in topics if topic.name in own])
    shared = situation(options, policy)
    clock = SystemClock()
    telemetry = from_environment("router", settings.instance)
    writer = f"router/{settings.instance}"
    notary = make_notary(settings, writer, clock)
    scribe = Scribe(catalogue, writer, notary.digests, policy.version, options.version)
    cancellations = Cancellations(clock)
    router = Router(
        shared,
        scribe,
        clock,
        telemetry,
        request_bytes_max=settings.request_bytes_max,
        duplicate_window_records=settings.duplicate_window_records,
        tokens=tokens,
    )
    batcher = Batcher(
        shared,
        scribe,
        clock,
        telemetry,
        cancellations,
        held_records_max=settings.held_records_max,
        held_payload_bytes_max=settings.held_payload_bytes_max,
    )
    signal = AutoscalingSignal(shared, batcher, clock)
    page = LivePage(settings, options, policy, clock)
    metrics = Metrics(options, policy, tenants_max=settings.metrics_tenants_max)
    for source in (signal.gauges, hold_gauges(batcher, policy, clock), target_gauges(policy)):
        metrics.gauges.read_from(source)
    run_app(
        "router",
        settings,
        [
            TelemetryService(telemetry),
            MetricsService(metrics, "router", settings.instance, clock),
            *notary_services(settings, notary),
            FollowerService(FleetFollower(settings, shared.view)),
            FollowerService(CancellationFollower(settings, cancellations)),
            StageService(transactor(settings, router, notary, metrics), "router"),
            StageService(transactor(settings, batcher, notary, metrics), "batcher"),
            StageService(
                transactor(settings, Canceller(scribe, clock), notary, metrics), "canceller"
            ),
            page.watching,
        ],
        pages={
            "/autoscaling": lambda: ("application/json", encode({"pools": signal.pools()})),
        },
        views=page.views(),
        metrics=metrics.page,
    )
