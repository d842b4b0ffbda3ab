"""`shunter router`, put together: router, batcher and canceller over one view of the fleet."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import NoReturn

from mode import Service

from policies import Policy, Situation, compile_options, situation
from streams.ahead import ReadAheadService
from streams.autoscaling import AutoscalingSignal
from streams.batcher import Batcher
from streams.blocked import BlockWatch, BlockWatchService
from streams.cancellations import CancellationFollower, Cancellations
from streams.canceller import Canceller
from streams.clock import BrokerClock, Clock, SystemClock
from streams.declarations import Declarations, load_fleet, load_policy
from streams.digests import Digests
from streams.fleet_follower import FleetFollower
from streams.follower import TopicFollower
from streams.heads import HeadsService
from streams.host import (
    FollowerService,
    StageService,
    StartedTogether,
    TelemetryService,
    run_app,
)
from streams.in_force import InForce, Terms
from streams.instance import claim_name
from streams.kafka import EXPIRY_CHECK_S, KafkaLog
from streams.live.page import LivePage
from streams.metrics import Metrics, MetricsService
from streams.metrics.gauges import (
    follower_counts,
    hold_gauges,
    span_gauges,
    target_gauges,
)
from streams.notary import Notary
from streams.open_transactions import find_open
from streams.otel import from_environment
from streams.outgoing import Scribe
from streams.policy_follower import PolicyFollower
from streams.route_spans import RouteSpans
from streams.router import Router
from streams.salt_follower import SaltFollower
from streams.stage import Observer, Stage
from streams.stranded import Stranded, StrandedService
from streams.telemetry import Telemetry
from streams.tokens import load_token_counter
from streams.transactor import Transactor
from topics import Catalogue, Settings, Topic, encode
from topics.access import router as router_role
from topics.admin import AdminError, partition_counts
from topics.signing_key import load_signing_key


def make_notary(settings: Settings, writer: str, clock: Clock) -> Notary:
    """Return the notary of a process, with the key that the settings name or one of its own.

    Raises:
        KeyFileError: the key's file can't be used.
    """
    catalogue = Catalogue(settings)
    secret = settings.evidence_secret
    digests = Digests(
        catalogue,
        None if secret is None else secret.get_secret_value().encode(),
        secrets.token_bytes,
    )
    return Notary(catalogue, load_signing_key(settings.evidence_key), writer, clock, digests)


def follow(follower: TopicFollower, metrics: Metrics) -> FollowerService:
    """Return the service of a follower, whose passed over records the metrics count."""
    metrics.gauges.read_from(follower_counts(follower))
    return FollowerService(follower)


def notary_services(
    settings: Settings, notary: Notary, metrics: Metrics, clock: BrokerClock
) -> list[Service]:
    """Return what has to run, and before any stage, in a process that signs; it sets the clock."""
    return [
        follow(SaltFollower(settings, notary.digests), metrics),
        HeadsService(settings, notary, clock),
    ]


def telling_services(
    name: str, settings: Settings, metrics: Metrics, clock: Clock
) -> list[Service]:
    """Return what tells of a process: its metrics, and the partitions that keep it waiting."""
    watch = BlockWatch(
        metrics.logs,
        partial(find_open, settings),
        clock,
        patience_s=settings.transaction_timeout_ms / 1000 + EXPIRY_CHECK_S,
        servers=settings.bootstrap_servers,
    )
    metrics.gauges.read_from(watch.gauges)
    return [MetricsService(metrics, name, settings.instance, clock), BlockWatchService(watch)]


def transactor(
    settings: Settings,
    stage: Stage,
    notary: Notary,
    metrics: Metrics,
    observers: Sequence[Observer] = (),
    before_step: Callable[[], None] = lambda: None,
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
        before_step=before_step,
    )


def check_topics(settings: Settings, topics: Iterable[Topic]) -> None:
    """Make sure that the topics are there before anything relies on them.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing or has other partitions.
    """
    asyncio.run(_check_topics(settings, topics))


async def _check_topics(settings: Settings, topics: Iterable[Topic]) -> None:
    wanted = {topic.name: topic.partitions for topic in topics}
    if not wanted:
        return
    found = await partition_counts(settings, wanted)
    for name, partitions in wanted.items():
        if found[name] != partitions:
            raise AdminError(
                f"topic {name} has {found[name]} partitions, where SHUNTER_PARTITIONS wants"
                f" {partitions}; set it to what the topics were created with"
            )


def _begin(settings: Settings, own: Declarations) -> Situation:
    """Return the situation that a router begins in, once its topics are known to be there."""
    begun, catalogue = situation(compile_options(own.fleet), own.policy), Catalogue(settings)
    # Not those that a router has no business with: it may not so much as see them.
    seen = router_role(catalogue, begun.options.by_pool).topics()
    topics = catalogue.topics(begun.options.by_pool)
    check_topics(settings, [topic for topic in topics if topic.name in seen])
    return begun


def _policies(
    settings: Settings, in_force: InForce, own: Declarations, clock: Clock
) -> PolicyFollower:
    """Return what puts in force what is applied, once the topics of new pools are there."""
    catalogue = Catalogue(settings)

    async def check(pools: Collection[str]) -> None:
        await _check_topics(settings, [t for pool in pools for t in catalogue.pool_topics(pool)])

    return PolicyFollower(settings, in_force, own, check, clock)


def _what_comes_first(
    settings: Settings,
    notary: Notary,
    in_force: InForce,
    own: Declarations,
    cancellations: Cancellations,
    clock: BrokerClock,
    metrics: Metrics,
) -> Service:
    """Return what signs, and what keeps up with heartbeats, policies and cancellations."""
    return StartedTogether(
        *notary_services(settings, notary, metrics, clock),
        follow(FleetFollower(settings, in_force.report), metrics),
        follow(_policies(settings, in_force, own, clock), metrics),
        follow(CancellationFollower(settings, cancellations), metrics),
    )


def _metrics(
    settings: Settings,
    in_force: InForce,
    batcher: Batcher,
    signal: AutoscalingSignal,
    telemetry: Telemetry,
    clock: Clock,
) -> Metrics:
    """Return the metrics of a router, which follow what is in force."""
    here = in_force.situation
    metrics = Metrics(here.options, here.policy, tenants_max=settings.metrics_tenants_max)
    in_force.tell(metrics.change)

    def policy() -> Policy:
        return in_force.situation.policy

    for source in (
        signal.gauges,
        hold_gauges(batcher, policy, clock),
        target_gauges(policy),
        span_gauges(telemetry),
    ):
        metrics.gauges.read_from(source)
    return metrics


def run_router(settings: Settings) -> NoReturn:
    """Route requests and release batches until told to stop.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        DeclarationError: fleet or policy can't be used.
        NameTakenError: another router has the name that the settings give.
        TelemetryError: the ``OTEL_*`` variables ask for what can't be had.
    """
    own = Declarations(load_fleet(settings.fleet), load_policy(settings.policy))
    begun = _begin(settings, own)
    # Kept until the process ends, and with it the name.
    claim = claim_name(settings, "router", Catalogue(settings).router_groups)
    _run_router(claim.settings, own, begun)


def _run_router(settings: Settings, own: Declarations, begun: Situation) -> NoReturn:
    catalogue, clock = Catalogue(settings), BrokerClock(SystemClock())
    telemetry = from_environment("router", settings.instance)
    writer = f"router/{settings.instance}"
    notary = make_notary(settings, writer, clock)
    scribe = Scribe(catalogue, writer, notary.digests, own.policy.version, begun.options.version)
    in_force = InForce(Terms(begun, scribe, load_token_counter(own.fleet)))
    cancellations = Cancellations(clock)
    router = Router(
        begun,
        scribe,
        clock,
        telemetry,
        request_bytes_max=settings.request_bytes_max,
        duplicate_window_records=settings.duplicate_window_records,
        tokens=in_force.terms.tokens,
    )
    batcher = Batcher(
        begun,
        scribe,
        clock,
        telemetry,
        cancellations,
        held_records_max=settings.held_records_max,
        held_payload_bytes_max=settings.held_payload_bytes_max,
    )
    stranded = Stranded(lambda: in_force.situation, KafkaLog(settings), catalogue, clock)
    signal = AutoscalingSignal(lambda: in_force.situation, batcher, stranded, clock)
    metrics = _metrics(settings, in_force, batcher, signal, telemetry, clock)
    spans = [RouteSpans(telemetry, catalogue, clock)]
    page = LivePage(settings, begun.options, begun.policy, clock)
    in_force.tell(page.change)
    stages: list[tuple[Stage, str, Sequence[Observer], Callable[[], None]]] = [
        (router, "router", spans, in_force.keep(router.take_terms)),
        (batcher, "batcher", spans, in_force.keep(batcher.take_terms)),
        (Canceller(scribe, clock), "canceller", [], lambda: None),
    ]
    services = [
        StageService(transactor(settings, stage, notary, metrics, observers, before_step), name)
        for stage, name, observers, before_step in stages
    ]
    run_app(
        "router",
        settings,
        [
            TelemetryService(telemetry),
            *telling_services("router", settings, metrics, clock),
            # All that is followed is known before a stage decides.
            _what_comes_first(settings, notary, in_force, own, cancellations, clock, metrics),
            # Before the stages, which may have to wait for their share.
            ReadAheadService(batcher.read_ahead, KafkaLog(settings)),
            StartedTogether(*services),
            StrandedService(stranded),
            page.watching,
        ],
        pages={"/autoscaling": lambda: ("application/json", encode({"pools": signal.pools()}))},
        views=page.views(),
        metrics=metrics.page,
    )
