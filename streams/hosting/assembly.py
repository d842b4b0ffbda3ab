"""The parts that router and worker share, assembled from the settings."""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mode import Service

from streams.engine.clock import BrokerClock, Clock
from streams.engine.signer import Signer
from streams.engine.stage import Observer, Stage
from streams.engine.text_digests import Digests
from streams.engine.transactor import Transactor
from streams.evidence.head_publisher import HeadPublisher
from streams.evidence.salt_follower import SaltFollower
from streams.hosting.services import FollowerService
from streams.kafka.follower import TopicFollower
from streams.kafka.log import EXPIRY_CHECK_S, KafkaLog
from streams.kafka.open_transactions import find_open
from streams.metrics import Metrics, MetricsService
from streams.metrics.gauges import broken_counts, follower_counts
from streams.metrics.open_transaction_watch import BlockWatch, BlockWatchService
from topics import Catalogue, Settings, Topic
from topics.admin.provisioning import AdminError, partition_counts
from topics.signing.keys import SigningKey, load_signing_key


def make_signer(settings: Settings, writer: str, clock: Clock) -> Signer:
    """Return the signer of a process, with the key from the settings or a new one.

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
    return Signer(catalogue, load_signing_key(settings.evidence_key), writer, clock, digests)


def introducer_of(settings: Settings) -> SigningKey | None:
    """Return the key that introduces those of processes, if the settings name one.

    Raises:
        KeyFileError: the key's file can't be used.
    """
    path = settings.evidence_introducer
    return None if path is None else load_signing_key(path)


def follow(follower: TopicFollower, metrics: Metrics) -> FollowerService:
    """Return the service of a follower; the metrics count the records that it skips."""
    metrics.gauges.read_from(follower_counts(follower))
    return FollowerService(follower)


def signing_services(
    settings: Settings, signer: Signer, metrics: Metrics, clock: BrokerClock
) -> list[Service]:
    """Return the services that a signing process runs before any stage; they set the clock."""
    return [
        follow(SaltFollower(settings, signer.digests), metrics),
        HeadPublisher(settings, signer, clock, introducer_of(settings)),
    ]


def telling_services(
    name: str, settings: Settings, metrics: Metrics, clock: Clock
) -> list[Service]:
    """Return the services that report on a process: its metrics, and its blocked partitions."""
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
    signer: Signer,
    metrics: Metrics,
    observers: Sequence[Observer] = (),
    before_step: Callable[[], None] = lambda: None,
) -> Transactor:
    """Return a transactor that drives the stage over the settings' Kafka, with metrics."""
    log = KafkaLog(settings)
    metrics.watch(stage.group, log)
    driven = Transactor(
        log,
        stage,
        signer=signer,
        progress_topic=Catalogue(settings).progress,
        poll_s_max=settings.poll_s_max,
        poll_records_max=settings.poll_records_max,
        # The broker's timeout begins at the first record; all before it is quick.
        transaction_s_max=settings.transaction_timeout_ms / 1000 + 2.0,
        observers=[metrics.observer, *observers],
        timed=metrics.timed,
        before_step=before_step,
    )
    metrics.gauges.read_from(broken_counts(stage.group, lambda: driven.broken))
    return driven


def check_topics(settings: Settings, topics: Iterable[Topic]) -> None:
    """Check that the topics exist before anything relies on them, outside an event loop.

    Raises:
        AdminError: as ``require_topics``.
    """
    asyncio.run(require_topics(settings, topics))


async def require_topics(settings: Settings, topics: Iterable[Topic]) -> None:
    """Check that these topics exist.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing or has other partitions.
    """
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
