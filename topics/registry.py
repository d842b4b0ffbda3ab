"""The catalogue of all topics, the source of their creation, checks and documentation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from topics.records.cancellation import CANCELLATION_S, Cancellation
from topics.records.claim import KeyClaim
from topics.records.evidence import Evidence
from topics.records.heartbeat import PoolStatus
from topics.records.money import BudgetState
from topics.records.policy_change import PolicyEntry
from topics.records.progress import Progress
from topics.records.quality import Comparison, QualityEntry
from topics.records.quote import QuoteAnswer, QuoteQuestion
from topics.records.request import InferenceRequest
from topics.records.result import Result
from topics.records.seen_ids import SeenIds
from topics.records.stream_chunk import StreamPiece
from topics.settings import MIB, RETENTION_DAYS, Settings
from topics.signing.salts import Salt
from topics.signing.signed_root import KeyEntry, Root

DAY_MS = 24 * 3600 * 1000
RESULTS_MS = 7 * DAY_MS
Lane = Literal["direct", "batch"]

# Ingest takes more than a request may have, so that a request that is too large ends as a dead
# letter with its reason; what Shunter writes has room for the headers it adds.
INGEST_BYTES_MAX = 8 * MIB
OUTPUT_BYTES_MAX = 12 * MIB
CANCELLATION_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. ``schema`` is the record model of its values, None if bytes are passed on."""

    name: str
    partitions: int
    key: str
    value: str
    schema: type | None
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int = 7 * DAY_MS
    bytes_max: int = OUTPUT_BYTES_MAX
    extra: dict[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, str]:
        """Return the topic's Kafka configuration."""
        config = {
            "cleanup.policy": self.cleanup,
            "max.message.bytes": str(self.bytes_max),
            # The producer's own compression is kept as it is: payload bytes are passed on.
            "compression.type": "producer",
        }
        if self.cleanup == "delete":
            config["retention.ms"] = str(self.retention_ms)
        return config | self.extra


# Not that of whoever wrote a record, which may be wrong, or a lie (docs/decisions/0023).
BROKERS_TIME = {"message.timestamp.type": "LogAppendTime"}
# Small segments that are cleaned soon: a new owner reads these topics from the beginning.
_QUICK_COMPACTION = {
    "segment.ms": str(10 * 60 * 1000),
    "segment.bytes": str(16 * MIB),
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": str(DAY_MS),
}
# How long a segment of salts takes records, and how long what is forgotten may stay on a disk when
# the cleaner does not find it worth its while before.
SALT_SEGMENT_MS = 5 * 1000
SALT_GONE_MS = 10 * 60 * 1000
# A salt that is forgotten must leave the disk of each broker, however quiet the topic is: Kafka
# compacts only what is no longer written to, so `shunter audit forget` ends the segment.
_FORGETTING = _QUICK_COMPACTION | {
    "segment.ms": str(SALT_SEGMENT_MS),
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": str(SALT_GONE_MS),
    "file.delete.delay.ms": "10000",
    # The time that ends a segment is the one that a record has of its writer.
    "message.timestamp.type": "CreateTime",
}


class Catalogue:
    """All topic names of one Shunter installation, made from its prefix."""

    def __init__(self, settings: Settings) -> None:
        self._partitions = settings.partitions
        # How long evidence stays on its topic.
        self.evidence_ms = RETENTION_DAYS[settings.retention] * DAY_MS
        self.prefix = settings.topic_prefix
        self.requests = f"{self.prefix}.requests"
        self.quotes = f"{self.prefix}.quotes"
        self.quote_answers = f"{self.prefix}.quote-answers"
        self.reroutes = f"{self.prefix}.reroutes"
        self.cancellations = f"{self.prefix}.cancellations"
        self.accounts = f"{self.prefix}.accounts"
        self.budgets = f"{self.prefix}.budgets"
        self.held = f"{self.prefix}.held"
        self.results = f"{self.prefix}.results"
        self.streams = f"{self.prefix}.streams"
        self.evidence = f"{self.prefix}.evidence"
        self.evidence_roots = f"{self.prefix}.evidence-roots"
        self.evidence_keys = f"{self.prefix}.evidence-keys"
        self.evidence_salts = f"{self.prefix}.evidence-salts"
        self.dead_letters = f"{self.prefix}.dead-letters"
        self.pool_status = f"{self.prefix}.pool-status"
        self.policies = f"{self.prefix}.policies"
        self.comparisons = f"{self.prefix}.comparisons"
        self.quality = f"{self.prefix}.quality"
        self.progress = f"{self.prefix}.progress"
        self.seen_ids = f"{self.prefix}.seen-ids"
        self.claims = f"{self.prefix}.claims"
        self.router_group = f"{self.prefix}.router"
        self.batcher_group = f"{self.prefix}.batcher"
        self.canceller_group = f"{self.prefix}.canceller"
        self.quality_group = f"{self.prefix}.quality-watch"
        self.quote_group = f"{self.prefix}.quote-desk"
        self.router_groups = (
            self.router_group,
            self.batcher_group,
            self.canceller_group,
            self.quality_group,
            self.quote_group,
        )

    @property
    def partitions(self) -> int:
        """Partitions of the ingest topic and of all topics co-partitioned with it."""
        return self._partitions

    def pool_lane(self, pool: str, lane: Lane) -> str:
        """Return the topic of one lane of a pool."""
        return f"{self.prefix}.pool.{pool}.{lane}"

    def worker_group(self, pool: str) -> str:
        """Return the consumer group of a pool's workers."""
        return f"{self.prefix}.worker.{pool}"

    def owns(self, topic: str) -> bool:
        """Return True if a topic belongs to this installation, whatever its pools are.

        The prefix alone is not enough: another installation's prefix may extend it.
        """
        if topic.startswith(f"{self.prefix}.pool."):
            _, _, rest = topic[len(self.prefix) :].partition(".pool.")
            pool, _, lane = rest.partition(".")
            return bool(pool) and lane in get_args(Lane)
        return topic in self._shared_names

    @cached_property
    def _shared_names(self) -> frozenset[str]:
        return frozenset(topic.name for topic in self.shared_topics())

    def topics(self, pools: Iterable[str]) -> list[Topic]:
        """Return every topic for a fleet with these pools, the shared ones first."""
        return self.shared_topics() + [t for pool in pools for t in self.pool_topics(pool)]

    def shared_topics(self) -> list[Topic]:
        """Return the topics that exist whatever the pools."""
        return self._public_topics() + self._inner_topics()

    def _public_topics(self) -> list[Topic]:
        """Return the topics that clients write and read."""
        n = self._partitions
        return [
            Topic(
                self.requests,
                n,
                "any; the request id keeps resends in order",
                "a request, native or a line of an OpenAI Batch file",
                InferenceRequest,
                bytes_max=INGEST_BYTES_MAX,
                extra=BROKERS_TIME,
            ),
            Topic(
                self.cancellations,
                n,
                "id of the request that is not wanted any more",
                "none, or why",
                Cancellation,
                retention_ms=CANCELLATION_S * 1000,
                bytes_max=CANCELLATION_BYTES_MAX,
                extra=BROKERS_TIME,
            ),
            Topic(self.results, n, "request id", "the result", Result, retention_ms=RESULTS_MS),
            Topic(
                self.streams,
                n,
                "request id",
                "a piece of an answer as it comes; the result at the end",
                StreamPiece,
                retention_ms=DAY_MS,
            ),
            *self._quote_topics(),
            *self._evidence_topics(),
            Topic(self.dead_letters, 1, "as it came", "as it came", None, retention_ms=30 * DAY_MS),
        ]

    def _inner_topics(self) -> list[Topic]:
        """Return the topics that only Shunter writes and reads."""
        n = self._partitions
        return [
            Topic(
                self.reroutes,
                n,
                "request id",
                "the request, one attempt later",
                InferenceRequest,
                extra=BROKERS_TIME,
            ),
            Topic(
                self.held,
                n,
                "request id",
                "the request as it came; a tombstone releases it",
                InferenceRequest,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
            Topic(
                self.pool_status,
                1,
                "pool/instance",
                "a worker's heartbeat",
                PoolStatus,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
            Topic(
                self.policies,
                1,
                "kind/version, change/number/at/by",
                "a policy or a fleet, or a change of what is in force",
                PolicyEntry,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
            *self._budget_topics(),
            *self._quality_topics(),
            Topic(
                self.progress,
                n,
                "group/topic/partition",
                "how far a stage has come",
                Progress,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
            Topic(
                self.seen_ids,
                n,
                "partition/block",
                "digests of the ids at a block of offsets of the ingest partition",
                SeenIds,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
            Topic(
                self.claims,
                1,
                "digest of tenant, path and key",
                "what an Idempotency-Key of the gateway stands for",
                KeyClaim,
                retention_ms=DAY_MS,
                extra=BROKERS_TIME,
            ),
        ]

    def _budget_topics(self) -> list[Topic]:
        n = self._partitions
        return [
            Topic(
                self.accounts,
                n,
                "request id",
                "a request whose tenant or key has a budget, or what one used at its end",
                InferenceRequest,
                extra=BROKERS_TIME,
            ),
            Topic(
                self.budgets,
                n,
                "rule/owner/window/number",
                "what a window of a budget keeps for open requests, and what ended ones used",
                BudgetState,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
        ]

    def _quote_topics(self) -> list[Topic]:
        return [
            Topic(
                self.quotes,
                1,
                "any",
                "what requests would cost, by when",
                QuoteQuestion,
                retention_ms=DAY_MS,
                bytes_max=INGEST_BYTES_MAX,
                extra=BROKERS_TIME,
            ),
            Topic(
                self.quote_answers,
                1,
                "id of the question",
                "the menu, or why there is none",
                QuoteAnswer,
                retention_ms=DAY_MS,
            ),
        ]

    def _quality_topics(self) -> list[Topic]:
        return [
            Topic(
                self.comparisons,
                1,
                "pool/variant",
                "how two answers to a request differ",
                Comparison,
                extra=BROKERS_TIME,
            ),
            Topic(
                self.quality,
                1,
                "kind/pool/variant/reference, or kind/class",
                "what the comparisons of a variant come to, and what they cost",
                QualityEntry,
                cleanup="compact",
                extra=_QUICK_COMPACTION,
            ),
        ]

    def _evidence_topics(self) -> list[Topic]:
        n = self._partitions
        return [
            Topic(
                self.evidence,
                n,
                "request id",
                "one step of a request",
                Evidence,
                retention_ms=self.evidence_ms,
            ),
            Topic(
                self.evidence_roots,
                n,
                "chain",
                "the signed root over the evidence of one transaction",
                Root,
                # Longer than evidence by two segments of a week: no record outlives its root.
                retention_ms=self.evidence_ms + 14 * DAY_MS,
                # Beside the writer's.
                extra=BROKERS_TIME,
            ),
            Topic(
                self.evidence_keys,
                1,
                "kind/key",
                "a public key, its revocation, or a writer's last roots",
                KeyEntry,
                cleanup="compact",
                # Whoever writes here hears what time it is (streams/evidence/head_publisher.py).
                extra=_QUICK_COMPACTION | BROKERS_TIME,
            ),
            Topic(
                self.evidence_salts,
                1,
                "tenant/salt",
                "what digests of a tenant's texts are made with; a tombstone forgets it",
                Salt,
                cleanup="compact",
                extra=_FORGETTING,
            ),
        ]

    def pool_topics(self, pool: str) -> list[Topic]:
        """Return the two lanes of a pool, co-partitioned with ingest."""
        lanes: tuple[Lane, ...] = ("direct", "batch")
        return [
            Topic(
                self.pool_lane(pool, lane),
                self._partitions,
                "request id",
                "the request as it came; the placement travels in headers",
                InferenceRequest,
                extra=BROKERS_TIME,
            )
            for lane in lanes
        ]
