"""`shunter router`, put together: router, batcher and canceller over one view of the fleet."""

from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from mode import Service

from policies import Policy, Situation, compile_options, situation
from streams.ahead import ReadAheadService
from streams.assembly import (
    check_topics,
    follow,
    make_notary,
    notary_services,
    require_topics,
    telling_services,
    transactor,
)
from streams.autoscaling import AutoscalingSignal
from streams.batcher import Batcher
from streams.cancellations import CancellationFollower, Cancellations
from streams.canceller import Canceller
from streams.clock import BrokerClock, Clock, SystemClock
from streams.declarations import Declarations, load_fleet, load_policy
from streams.fleet_follower import FleetFollower
from streams.host import (
    StageService,
    StartedTogether,
    TelemetryService,
    run_app,
)
from streams.in_force import InForce, Terms
from streams.instance import claim_name
from streams.kafka import KafkaLog
from streams.live.page import LivePage
from streams.metrics import Metrics
from streams.metrics.gauges import (
    hold_gauges,
    span_gauges,
    target_gauges,
)
from streams.notary import Notary
from streams.otel import from_environment
from streams.outgoing import Scribe
from streams.policy_follower import PolicyFollower
from streams.route_spans import RouteSpans
from streams.router import Router
from streams.stage import Observer, Stage
from streams.stranded import Stranded, StrandedService
from streams.telemetry import Telemetry
from streams.tokens import load_token_counter
from topics import Catalogue, Settings, encode
from topics.access import router as router_role


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
        await require_topics(settings, [t for pool in pools for t in catalogue.pool_topics(pool)])

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
