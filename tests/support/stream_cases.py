"""Parts of the tests of the stages: a fleet, a policy, a clock, requests, a cluster."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_log import MemoryCluster, MemoryLog

from policies import (
    Fleet,
    Options,
    Policy,
    Situation,
    compile_options,
    parse_fleet,
    parse_policy,
    tag,
)
from policies import situation as new_situation
from streams.cancellation.index import Cancellations
from streams.engine.clock import Clock
from streams.engine.log import Outgoing, Record
from streams.engine.signer import Signer
from streams.engine.stage import Observer, Stage
from streams.engine.text_digests import Digests
from streams.engine.transactor import TOGETHER_S, Transactor
from streams.evidence.records import EvidenceWriter
from streams.router.stage import Router
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Evidence, PoolStatus, Profile, Result, Settings, decode, parse_request
from topics.records import headers as h
from topics.signing.keys import SigningKey

T = TypeVar("T")

# Wherever a test needs a time, it is this one or later.
START = 1_800_000_000.0
MODEL = "yard-8b"
SPEED = 20.0
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

FLEET = """
devices:
  fast:
    kind: premium_gpu
    memory_gb: 80
    memory_bandwidth_tb_s: 4.0
    tflops: {fp8: 1600}
    usd_per_hour: 4.0
  slow:
    kind: lpddr_board
    memory_gb: 80
    memory_bandwidth_tb_s: 0.6
    tflops: {int8: 300}
    usd_per_hour: 0.4
models:
  yard-8b: {parameters_b: 8.0, layers: 32, kv_heads: 8, head_dim: 128, context_tokens: 32768}
pools:
  premium-eu:
    device: fast
    count: 1
    region: eu-west
    serves: [{model: yard-8b, variant: yard-8b-fp8, precision: fp8, max_batch: 4}]
    backend: {type: simulated, time_scale: 20.0}
  premium-us:
    device: fast
    count: 1
    region: us-east
    usd_per_hour: 5.0
    serves: [{model: yard-8b, variant: yard-8b-fp8, precision: fp8, max_batch: 4}]
    backend: {type: simulated, time_scale: 20.0}
  boards-us:
    device: slow
    count: 1
    region: us-east
    lanes: [batch]
    serves: [{model: yard-8b, variant: yard-8b-int8, precision: int8, max_batch: 4}]
    backend: {type: simulated, time_scale: 20.0}
"""

POLICY = """
classes:
  chat:
    latency_sensitive: true
    batchable: false
    ttft_ms: 1500
    deadline_s: 120
    longest_wait_s: 30
    output_tokens: 100
  summarization:
    latency_sensitive: false
    batchable: true
    deadline_s: 3600
    window_s: 45
    longest_wait_s: 600
    output_tokens: 100
data_classes:
  regulated: {regions: [eu-west]}
windows: {members_max: 4, margin_s: 2.0, length_buckets_tokens: [512, 2048], prior_rate_per_s: 0.5}
"""


class FakeClock:
    """A clock that stands until it is moved."""

    def __init__(self, at: float = START) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


@cache
def make_settings(**changes: Any) -> Settings:
    """Return settings that no environment variable reaches but those of pydantic.

    They can't be changed, nor can a fleet or a policy: each is read once.
    """
    return Settings(instance="test", topic_prefix="yard", partitions=4, **changes)


@cache
def make_fleet(text: str = FLEET) -> Fleet:
    return parse_fleet(text, "fleet of the tests")


def make_options(text: str = FLEET) -> Options:
    return compile_options(make_fleet(text))


@cache
def make_policy(text: str = POLICY) -> Policy:
    return parse_policy(text, "policy of the tests")


def heartbeat(options: Options, pool: str, at: float, **changes: Any) -> PoolStatus:
    """Return the report of a pool's only worker, idle."""
    first = options.by_pool[pool][0]
    fields: dict[str, Any] = {
        "pool": pool,
        "instance": "worker-1",
        "at": at,
        "state": "up",
        "interval_s": 100_000.0,
        "device": first.device,
        "region": first.region,
        "slots": first.max_batch,
        "running": 0,
        "queued": 0,
        "backlog_s": 0.0,
    }
    return PoolStatus(**(fields | changes))


class Yard:
    """One installation on one cluster in memory: everything that stages are given."""

    def __init__(
        self,
        *,
        live: Iterable[str] | None = None,
        policy: str = POLICY,
        fleet: str = FLEET,
        clock: FakeClock | None = None,
    ) -> None:
        self.settings = make_settings()
        self.catalogue = Catalogue(self.settings)
        self.clock = clock or FakeClock()
        self.fleet = make_fleet(fleet)
        self.options = compile_options(self.fleet)
        self.policy = make_policy(policy)
        topics = self.catalogue.topics(self.options.by_pool)
        self.cluster = MemoryCluster({t.name: t.partitions for t in topics}, now=self.clock.now)
        self.telemetry = Telemetry(None)
        self.cancellations = Cancellations(self.clock)
        self.digests = make_digests(self.catalogue)
        self.live = set(self.options.by_pool if live is None else live)

    def situation(self) -> Situation:
        """Return a situation of its own, as each process has, with the pools that live now."""
        found = new_situation(self.options, self.policy)
        for pool in self.live:
            found.view.report(heartbeat(self.options, pool, self.clock.at))
        return found

    def evidence_writer(self) -> EvidenceWriter:
        return EvidenceWriter(
            self.catalogue, "test", self.digests, self.policy.version, self.options.version
        )

    async def run(
        self,
        stage: Stage,
        log: MemoryLog | None = None,
        signer: Signer | None = None,
        records_max: int = 500,
        observers: Sequence[Observer] = (),
        before_step: Callable[[], None] = lambda: None,
    ) -> Transactor:
        """Return a transactor that has all partitions of the stage's topics."""
        log = log or MemoryLog(self.cluster)
        signer = signer or make_signer(self.catalogue, self.clock, self.digests)
        transactor = make_transactor(
            *(log, stage, self.catalogue.progress),
            signer=signer,
            records_max=records_max,
            observers=observers,
            before_step=before_step,
        )
        await transactor.start()
        await self.cluster.rebalance(stage.group)
        await transactor.take_over()
        return transactor

    def publish(self, partition: int = 0, headers: Any = (), **fields: Any) -> Record:
        """Put a request on the ingest topic."""
        value = orjson.dumps(request(**fields))
        key = str(fields.get("id", "r1")).encode()
        return self.cluster.publish(
            Outgoing(self.catalogue.requests, key, value, list(headers), partition)
        )

    def results(self) -> dict[str, Result]:
        """Return the results, by request; a request with two fails the test."""
        found = [
            decode(Result, r.value or b"") for r in self.cluster.records(self.catalogue.results)
        ]
        by_id = {result.id: result for result in found}
        assert len(by_id) == len(found), [result.id for result in found]
        return by_id

    def evidence(self, step: str | None = None) -> list[Evidence]:
        """Return the evidence, or that of one kind of step."""
        records = self.cluster.records(self.catalogue.evidence)
        found = [decode(Evidence, record.value or b"") for record in records]
        return [e for e in found if step in (None, e.step)]

    def dead_letters(self) -> list[Record]:
        return self.cluster.records(self.catalogue.dead_letters)

    def lane(self, pool: str, lane: Any, number: int | None = None) -> list[Record]:
        return self.cluster.records(self.catalogue.pool_lane(pool, lane), number)

    def held(self) -> list[Record]:
        """Return what is held by the log's own account: the newest of each key, if no tombstone."""
        newest = {r.key: r for r in self.cluster.records(self.catalogue.held)}
        return [record for record in newest.values() if record.value is not None]


def make_key(number: int = 1) -> SigningKey:
    """Return a key that is the same each time."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big")))


def make_digests(catalogue: Catalogue) -> Digests:
    """Return digests whose salts are the same each time."""
    serial = itertools.count(1)
    return Digests(catalogue, b"secret", lambda size: next(serial).to_bytes(size, "big"))


def make_signer(
    catalogue: Catalogue,
    clock: Clock,
    digests: Digests | None = None,
    *,
    key: SigningKey | None = None,
    writer: str = "test",
) -> Signer:
    digests = digests or make_digests(catalogue)
    return Signer(catalogue, key or make_key(), writer, clock, digests)


def make_transactor(
    log: MemoryLog,
    stage: Stage,
    progress_topic: str,
    *,
    signer: Signer | None = None,
    poll_s_max: float = 0.1,
    records_max: int = 500,
    observers: Sequence[Observer] = (),
    before_step: Callable[[], None] = lambda: None,
    together_s: float = TOGETHER_S,
) -> Transactor:
    return Transactor(
        log,
        stage,
        signer=signer or make_signer(Catalogue(make_settings()), FakeClock()),
        progress_topic=progress_topic,
        poll_s_max=poll_s_max,
        transaction_s_max=60.0,
        poll_records_max=records_max,
        observers=observers,
        before_step=before_step,
        together_s=together_s,
    )


def request(**fields: Any) -> dict[str, Any]:
    """Return a request: a chat turn, unless the fields say otherwise."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "which track?"}]}
    return {"id": "r1", "body": body, "created_at": START} | fields


def make_profile(policy: Policy, ingest_partition: int = 0, **fields: Any) -> Profile:
    """Return what the router knows of a request."""
    parsed = parse_request(orjson.dumps(request(**fields)), bytes_max=1_000_000)
    return tag(
        parsed, policy, received_at=START, now=START, ingest_partition=ingest_partition
    ).profile


def header(record: Record | Outgoing, name: str) -> str | None:
    value = h.find(record.headers, name)
    return None if value is None else value.decode()


def keys(records: Iterable[Record]) -> list[str]:
    return [(record.key or b"").decode() for record in records]


async def drain(transactor: Transactor) -> None:
    """Step until nothing is read any more, and no transaction is under way."""
    is_late = bool(transactor._runs)
    while await transactor.step() or is_late or transactor._runs:
        # What was left behind is polled again in the step after its end.
        is_late = bool(transactor._runs)


async def step_until(
    transactor: Transactor, check: Callable[[], object], what: str, timeout_s: float = 5.0
) -> None:
    """Step until the check holds."""
    try:
        async with asyncio.timeout(timeout_s):
            while not check():
                await transactor.step()
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


async def soon(awaitable: Awaitable[T], what: str, timeout_s: float = 90.0) -> T:
    """Await what would hang for ever if it were broken."""
    try:
        async with asyncio.timeout(timeout_s):
            return await awaitable
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


def make_router(yard: Yard) -> Router:
    return Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=yard.settings.request_bytes_max,
        duplicate_window_records=yard.settings.duplicate_window_records,
    )


async def route(yard: Yard) -> None:
    """Route whatever is there."""
    await drain(await yard.run(make_router(yard)))
