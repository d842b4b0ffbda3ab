"""Workers with a backend that does as the test says, and requests on their lanes."""

import asyncio
from typing import Any

import orjson
from memory_log import MemoryLog
from stream_cases import START, Yard, make_profile, request

from streams.engine.log import Outgoing, Partition, Record
from streams.engine.transactor import Transactor
from topics import (
    Batch,
    Envelope,
    Placement,
    Profile,
    Progress,
    Response,
    StreamPiece,
    Usage,
    VariantStatus,
    decode,
    encode,
    progress_key,
)
from topics.records import headers as h
from workers.backends.base import Backend, Call, CallError, Load, Outcome
from workers.resilience.attempts import Attempts
from workers.resilience.circuit_breaker import Breakers
from workers.stage.chunks import Streams
from workers.stage.outcomes import OutcomeWriter
from workers.stage.worker import Worker

POOL = "premium-eu"
VARIANT = "yard-8b-fp8"
GROUP = "yard.worker.premium-eu"
PROMISED = Envelope(cost_usd=0.5, ttft_s=0.3, finish_s=4.0, chance=0.9)


class ScriptedBackend:
    """Runs nothing: each call waits until the test says how it ends."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.is_well = True
        self.migrations: int | None = None
        self.used: dict[str, tuple[float, int, int]] = {}
        """Device time and tokens of tries that give no answer, by the request's id."""
        self._calls: dict[str, asyncio.Future[Outcome]] = {}

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    def load(self) -> Load:
        variants = {"yard-8b-fp8": VariantStatus(running=len(self.running))}
        return Load(0.0, variants, migrations=self.migrations)

    async def probe(self, variant: str) -> None:
        if not self.is_well:
            raise CallError("connect", "still gone", retry="here", is_pool_fault=True)

    @property
    def running(self) -> list[str]:
        return list(self._calls)

    async def execute(self, call: Call) -> Outcome:
        name = call.profile.id
        self.began.append(name)
        future = self._calls[name] = asyncio.get_running_loop().create_future()
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(name)
            call.meter.add(*self.used.get(name, (0.0, 0, 0)))
            raise
        except CallError:
            call.meter.add(*self.used.get(name, (0.0, 0, 0)))
            raise
        finally:
            del self._calls[name]

    def finish(self, name: str, **changes: Any) -> None:
        """Let a call end with an answer: 10 tokens, from START + 1 to START + 3."""
        fields: dict[str, Any] = {
            "response": Response(200, {"choices": [{"text": name}]}),
            "usage": Usage(20, 10),
            "started_at": START + 1.0,
            "first_token_at": START + 1.2,
            "finished_at": START + 3.0,
            "device_s": 0.9,
        }
        self._calls[name].set_result(Outcome(**(fields | changes)))

    def fail(self, name: str, error: Exception) -> None:
        """Let a call end with an error."""
        self._calls[name].set_exception(error)

    def lose(self, name: str, *, elsewhere: bool) -> None:
        """Let a call fail as a backend may."""
        retry: Any = "elsewhere" if elsewhere else "never"
        self.fail(name, CallError("timeout", "no answer in 30 s", retry=retry))


class MemorySink:
    """Puts pieces on the log in memory, in no transaction."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self.clock = yard.clock

    async def send(self, piece: StreamPiece) -> asyncio.Future[None]:
        topic = self._yard.catalogue.streams
        self._yard.cluster.publish(Outgoing(topic, piece.id.encode(), encode(piece)))
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def make_worker(
    yard: Yard,
    backend: ScriptedBackend,
    *,
    in_flight_max: int = 100,
    in_flight_bytes_max: int = 1 << 20,
) -> Worker:
    evidence_writer = yard.evidence_writer()
    served = yard.options.by_pool[POOL]
    breakers = Breakers(POOL, [option.variant for option in served], backend, yard.clock)
    return Worker(
        POOL,
        served,
        Attempts(
            backend,
            breakers,
            yard.clock,
            attempts_max=yard.policy.attempts_max,
            uniform=lambda: 0.5,
        ),
        evidence_writer,
        OutcomeWriter(evidence_writer, yard.telemetry, yard.policy.attempts_max),
        yard.clock,
        yard.cancellations,
        Streams(MemorySink(yard)),
        in_flight_max=in_flight_max,
        in_flight_bytes_max=in_flight_bytes_max,
    )


async def serve(
    yard: Yard, backend: ScriptedBackend, name: str = "a", **limits: int
) -> tuple[Worker, Transactor]:
    """Return a worker that has all partitions; whoever had them is gone."""
    yard.cluster.members.clear()
    worker = make_worker(yard, backend, **limits)
    return worker, await yard.run(worker, MemoryLog(yard.cluster, name))


def placed(
    yard: Yard,
    request_id: str,
    *,
    lane: Any = "direct",
    number: int = 0,
    ingest_partition: int = 0,
    profile: Profile | None = None,
    extra: tuple[tuple[str, bytes], ...] = (),
    **fields: Any,
) -> Outgoing:
    """Return a request as router or batcher sends it to the pool."""
    fields = {"id": request_id} | fields
    profile = profile or make_profile(yard.policy, ingest_partition, **fields)
    batch = Batch("b-0", 0, 2) if lane == "batch" else None
    placement = Placement(
        POOL,
        "fast",
        "yard-8b-fp8",
        "fp8",
        "eu-west",
        lane,
        batch_id=None if batch is None else batch.id,
        attempt=profile.attempt,
        fallbacks=profile.fallbacks,
    )
    added = h.encoded(profile=profile, placement=placement, promised=PROMISED, batch=batch)
    if batch is not None:
        added[h.RELEASED_AT] = repr(START + 0.5).encode()
    headers = h.replaced([("own", b"\xff"), *added.items()], dict(extra))
    topic = yard.catalogue.pool_lane(POOL, lane)
    return Outgoing(topic, request_id.encode(), orjson.dumps(request(**fields)), headers, number)


def place(yard: Yard, request_id: str, **details: Any) -> Record:
    """Put a request on a lane of the pool."""
    return yard.cluster.publish(placed(yard, request_id, **details))


def progress(yard: Yard, number: int = 0, lane: Any = "direct") -> Progress | None:
    """Return the newest progress of the pool's worker on a partition."""
    key = progress_key(GROUP, yard.catalogue.pool_lane(POOL, lane), number)
    records = yard.cluster.records(yard.catalogue.progress, number)
    values = [record.value for record in records if record.key == key]
    return (
        decode(Progress, values[-1] or b"").with_head(None).on_log(None, None) if values else None
    )


def partition(yard: Yard, number: int = 0, lane: Any = "direct") -> Partition:
    return Partition(yard.catalogue.pool_lane(POOL, lane), number)


def worker_on(yard: Yard, backend: Backend) -> tuple[Worker, Breakers]:
    served = yard.options.by_pool[POOL]
    breakers = Breakers(POOL, [VARIANT], backend, yard.clock)
    attempts = Attempts(
        backend, breakers, yard.clock, attempts_max=yard.policy.attempts_max, uniform=lambda: 0.0
    )
    evidence_writer = yard.evidence_writer()
    ending = OutcomeWriter(evidence_writer, yard.telemetry, yard.policy.attempts_max)
    worker = Worker(
        POOL, served, attempts, evidence_writer, ending, yard.clock, yard.cancellations,
        Streams(MemorySink(yard)), in_flight_max=100,
        in_flight_bytes_max=1 << 20,
    )  # fmt: skip
    return worker, breakers
