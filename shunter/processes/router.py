"""Assemble `shunter router`: router, batcher and canceller over one view of the fleet."""

from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from mode import Service
from pydantic import SecretStr

from policies import Policy, Situation, compile_options, situation
from policies.quality.verdict_state import KnownQuality
from streams.autoscaling.orphaned_lanes import OrphanedLanes, OrphanedLanesService
from streams.autoscaling.signal import AutoscalingSignal
from streams.batcher.prefetch import PrefetchService
from streams.batcher.stage import Batcher
from streams.cancellation.index import CancellationFollower, Cancellations
from streams.cancellation.stage import Canceller
from streams.config.active_policy import ActivePolicy, DecisionContext
from streams.config.declarations import Declarations, load_fleet, load_policy
from streams.config.fleet_follower import FleetFollower
from streams.config.policy_follower import PolicyFollower
from streams.config.token_counting import load_token_counter
from streams.engine.clock import BrokerClock, Clock, SystemClock
from streams.engine.signer import Signer
from streams.engine.stage import Observer, Stage
from streams.evidence.records import EvidenceWriter
from streams.hosting.assembly import (
    check_topics,
    follow,
    make_signer,
    require_topics,
    signing_services,
    telling_services,
    transactor,
)
from streams.hosting.services import ServiceGroup, StageService, TelemetryService, run_app
from streams.kafka.instance_name import claim_name
from streams.kafka.log import KafkaLog
from streams.live.page import LivePage
from streams.metrics import Metrics
from streams.metrics.gauges import (
    hold_gauges,
    misfit_counts,
    quality_gauges,
    span_gauges,
    target_gauges,
)
from streams.quality.follower import QualityFollower
from streams.quality.stage import QualityWatch
from streams.router.quote_stage import QuoteStage
from streams.router.stage import Router
from streams.tracing.route_spans import RouteSpans
from streams.tracing.setup import from_environment
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Settings, encode
from topics.admin.acls import router as router_role


def _begin(settings: Settings, own: Declarations) -> Situation:
    """Return a router's first situation, once its topics are known to exist."""
    begun, catalogue = situation(compile_options(own.fleet), own.policy), Catalogue(settings)
    # Not the topics that a router doesn't use: it may not even describe them.
    seen = router_role(catalogue, begun.options.by_pool).topics()
    topics = catalogue.topics(begun.options.by_pool)
    check_topics(settings, [topic for topic in topics if topic.name in seen])
    return begun


def _policies(
    settings: Settings, active_policy: ActivePolicy, own: Declarations, clock: Clock
) -> PolicyFollower:
    """Return the service that puts policies in force, once the topics of new pools exist."""
    catalogue = Catalogue(settings)

    async def check(pools: Collection[str]) -> None:
        await require_topics(settings, [t for pool in pools for t in catalogue.pool_topics(pool)])

    return PolicyFollower(settings, active_policy, own, check, clock)


def _what_comes_first(
    settings: Settings,
    signer: Signer,
    active_policy: ActivePolicy,
    own: Declarations,
    cancellations: Cancellations,
    clock: BrokerClock,
    metrics: Metrics,
) -> Service:
    """Return the services for signing, heartbeats, policies and cancellations."""
    return ServiceGroup(
        *signing_services(settings, signer, metrics, clock),
        follow(FleetFollower(settings, active_policy.report), metrics),
        follow(_policies(settings, active_policy, own, clock), metrics),
        follow(CancellationFollower(settings, cancellations), metrics),
    )


def _shown(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


_HostedStage = tuple[Stage, str, Sequence[Observer], Callable[[], None]]
"""A stage, its name, who is told of its commits, and what it does before each step."""


def _quotes(settings: Settings, active_policy: ActivePolicy, clock: Clock) -> _HostedStage:
    stage = QuoteStage(
        active_policy.terms,
        clock,
        request_bytes_max=settings.request_bytes_max,
        key_secret=_shown(settings.key_secret),
        quote_secret=_shown(settings.quote_secret),
    )
    return stage, "quote-desk", [], active_policy.keep(stage.take_context)


def _metrics(
    settings: Settings,
    active_policy: ActivePolicy,
    batcher: Batcher,
    signal: AutoscalingSignal,
    telemetry: Telemetry,
    clock: Clock,
) -> Metrics:
    """Return the metrics of a router, which follow the declarations in force."""
    here = active_policy.situation
    metrics = Metrics(here.options, here.policy, tenants_max=settings.metrics_tenants_max)
    active_policy.tell(metrics.change)

    def policy() -> Policy:
        return active_policy.situation.policy

    for source in (
        signal.gauges,
        hold_gauges(batcher, policy, clock),
        target_gauges(policy),
        misfit_counts(lambda: active_policy.situation.view),
        span_gauges(telemetry),
    ):
        metrics.gauges.read_from(source)
    return metrics


def run_router(settings: Settings) -> NoReturn:
    """Route requests and release batches until stopped.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        DeclarationError: fleet or policy can't be used.
        NameTakenError: another router has the name that the settings give.
        TelemetryError: the ``OTEL_*`` variables ask for what can't be had.
    """
    own = Declarations(load_fleet(settings.fleet), load_policy(settings.policy))
    begun = _begin(settings, own)
    # Kept until the process ends, and the name with it.
    claim = claim_name(settings, "router", Catalogue(settings).router_groups)
    _run_router(claim.settings, own, begun)


def _run_router(settings: Settings, own: Declarations, begun: Situation) -> NoReturn:
    catalogue, clock = Catalogue(settings), BrokerClock(SystemClock())
    telemetry = from_environment("router", settings.instance)
    writer = f"router/{settings.instance}"
    signer = make_signer(settings, writer, clock)
    evidence_writer = EvidenceWriter(
        catalogue, writer, signer.digests, own.policy.version, begun.options.version
    )
    active_policy = ActivePolicy(
        DecisionContext(begun, evidence_writer, load_token_counter(own.fleet))
    )
    cancellations, known = Cancellations(clock), KnownQuality()
    router = Router(
        begun,
        evidence_writer,
        clock,
        telemetry,
        request_bytes_max=settings.request_bytes_max,
        duplicate_window_records=settings.duplicate_window_records,
        tokens=active_policy.terms.tokens,
        quality=known,
        key_secret=_shown(settings.key_secret),
        quote_secret=_shown(settings.quote_secret),
    )
    batcher = Batcher(
        begun,
        evidence_writer,
        clock,
        telemetry,
        cancellations,
        held_records_max=settings.held_records_max,
        held_payload_bytes_max=settings.held_payload_bytes_max,
    )
    orphaned = OrphanedLanes(lambda: active_policy.situation, KafkaLog(settings), catalogue, clock)
    signal = AutoscalingSignal(lambda: active_policy.situation, batcher, orphaned, clock)
    metrics = _metrics(settings, active_policy, batcher, signal, telemetry, clock)
    metrics.gauges.read_from(quality_gauges(known, clock))
    spans = [RouteSpans(telemetry, catalogue, clock)]
    page = LivePage(settings, begun.options, begun.policy, clock)
    active_policy.tell(page.change)
    stages: list[_HostedStage] = [
        (router, "router", spans, active_policy.keep(router.take_context)),
        (batcher, "batcher", spans, active_policy.keep(batcher.take_context)),
        (Canceller(evidence_writer, clock), "canceller", [], lambda: None),
        (QualityWatch(evidence_writer, clock), "quality-watch", [], lambda: None),
        _quotes(settings, active_policy, clock),
    ]
    services = [
        StageService(transactor(settings, stage, signer, metrics, observers, before_step), name)
        for stage, name, observers, before_step in stages
    ]
    run_app(
        "router",
        settings,
        [
            TelemetryService(telemetry),
            *telling_services("router", settings, metrics, clock),
            # All followed topics are read before a stage decides.
            _what_comes_first(settings, signer, active_policy, own, cancellations, clock, metrics),
            follow(QualityFollower(settings, known, active_policy.judged), metrics),
            # Before the stages, which may have to wait for their share.
            PrefetchService(batcher.read_ahead, KafkaLog(settings)),
            ServiceGroup(*services),
            OrphanedLanesService(orphaned),
            page.on_demand,
        ],
        pages={"/autoscaling": lambda: ("application/json", encode({"pools": signal.pools()}))},
        views=page.views(),
        metrics=metrics.page,
    )
