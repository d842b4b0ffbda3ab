"""Test bed: a fleet of any size, its heartbeats, requests of any size, a router on them."""

import os
from collections.abc import Coroutine, Sequence
from itertools import cycle, islice
from typing import Any, cast

import orjson

from policies import FleetView, Options, Policy, Situation, compile_options, parse_fleet, situation
from streams.config.declarations import load_policy, packaged
from streams.engine.log import Log, Partition, Record
from streams.engine.signer import Signer
from streams.engine.stage import Effect
from streams.engine.text_digests import Digests
from streams.evidence.records import EvidenceWriter
from streams.router.stage import Router
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, PoolStatus, Settings
from topics.signing.keys import load_signing_key

NOW = 1_800_000_000.0
MODEL = "llama-3.1-8b"
POOLS, VARIANTS = 10, 3
REQUEST_BYTES = 1024
PRECISIONS = ("fp8", "bf16", "int4")
MODELS = ((MODEL, "fp8"), ("llama-guard-3-8b", "fp8"), ("minilm-embedding", "bf16"))
DEVICES = ("h200", "b200", "maia-200", "crescent-island")
# As large as the first, so that a pool costs alike whichever it serves.
OTHER_MODEL = "llama-guard-3-8b"
REGIONS = ("us-east", "eu-west", "ap-south")
# Far ahead: a run is no test of heartbeats.
INTERVAL_S = 1e9
# Without a window for duplicates a router reads nothing back.
_NO_LOG = cast("Log", None)


class Clock:
    """A clock that stands still."""

    def __init__(self, at: float) -> None:
        self._at = at

    def now(self) -> float:
        """Return the one time."""
        return self._at


def fleet_text(
    pools: int = POOLS,
    variants: int = VARIANTS,
    *,
    is_mixed: bool = False,
    serving: int | None = None,
) -> str:
    """Return a fleet file, as JSON, which YAML includes: each pool serves each variant.

    Args:
        pools: of it; devices and regions take turns.
        variants: in each pool.
        is_mixed: they are of as many models, not of one.
        serving: this many pools serve the model, the others as many variants of another one.
    """
    declared = {}
    for number in range(pools):
        is_serving = serving is None or number < serving
        model, name = (MODEL, "variant") if is_serving else (OTHER_MODEL, "other")
        serves = [
            {"model": model, "variant": f"{name}-{n}-{precision}", "precision": precision}
            for n, precision in enumerate(islice(cycle(PRECISIONS), variants))
        ]
        if is_mixed:
            serves = [
                {"model": each, "variant": f"{each}-{precision}", "precision": precision}
                for each, precision in MODELS[:variants]
            ]
        declared[f"pool-{number:03d}"] = {
            "device": DEVICES[number % len(DEVICES)],
            "count": 4,
            "region": REGIONS[number % len(REGIONS)],
            "serves": [{**each, "max_batch": 64} for each in serves],
            "backend": {"type": "simulated"},
        }
    return orjson.dumps({"pools": declared}).decode()


def make_options(
    pools: int = POOLS,
    variants: int = VARIANTS,
    *,
    is_mixed: bool = False,
    serving: int | None = None,
) -> Options:
    """Return the options of such a fleet."""
    fleet = parse_fleet(
        fleet_text(pools, variants, is_mixed=is_mixed, serving=serving),
        "the benchmark's fleet",
        packaged_devices_text=packaged("devices.yaml"),
        packaged_models_text=packaged("models.yaml"),
    )
    return compile_options(fleet)


def heartbeats(options: Options, now: float = NOW) -> list[PoolStatus]:
    """Return the report of one idle worker for each pool."""
    return [
        PoolStatus(
            pool=pool,
            instance="w",
            at=now,
            state="up",
            interval_s=INTERVAL_S,
            device=of_pool[0].device,
            region=of_pool[0].region,
            slots=sum(o.max_batch * o.replicas for o in of_pool),
            running=0,
            queued=0,
            backlog_s=0.0,
        )
        for pool, of_pool in options.by_pool.items()
    ]


def live_situation(options: Options, policy: Policy, now: float = NOW) -> Situation:
    """Return a situation in which every pool is live and idle."""
    found = situation(options, policy)
    report_all(found.view, options, now)
    return found


def report_all(view: FleetView, options: Options, now: float = NOW) -> None:
    """Let every pool report that it is idle; work sent before is dropped."""
    for status in heartbeats(options, now):
        view.report(status)


def request_value(number: int, size: int = REQUEST_BYTES, **fields: Any) -> bytes:
    """Return a request of this many bytes: a chat turn, unless the fields differ.

    Prompts differ in length, by their number, so that no two in a row are the same work.
    """
    text = "Which track does this wagon go to, and which engine shunts it there? "
    messages = [{"role": "user", "content": ""}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 100 + number % 97}
    value = {"id": f"r-{number:09d}", "body": body, "metadata": {"n": number}, **fields}
    short = size - len(orjson.dumps(value)) - number % 31
    messages[0]["content"] = (text * (short // len(text) + 1))[: max(1, short)]
    return orjson.dumps(value)


def records_of(values: Sequence[bytes], topic: str, first: int = 0) -> list[Record]:
    """Return the values as records read from one partition of the ingest topic."""
    home, at = Partition(topic, 0), int(NOW * 1000)
    return [
        Record(home, first + n, b"r-%09d" % (first + n), value, (), at)
        for n, value in enumerate(values)
    ]


class Yard:
    """A router with its signer, on a fleet of its own and on no log."""

    def __init__(
        self, options: Options | None = None, policy: Policy | None = None, now: float = NOW
    ) -> None:
        self.now = now
        self.options = options or make_options()
        self.policy = policy or load_policy(None)
        self.catalogue = Catalogue(Settings(topic_prefix="bench", instance="bench"))
        self.situation = live_situation(self.options, self.policy, now)
        digests = Digests(self.catalogue, None, os.urandom)
        clock = Clock(now)
        writer = "router/router-0"
        self.signer = Signer(self.catalogue, load_signing_key(None), writer, clock, digests)
        self.evidence_writer = EvidenceWriter(
            self.catalogue, writer, digests, self.policy.version, self.options.version
        )
        self.router = Router(
            self.situation,
            self.evidence_writer,
            clock,
            Telemetry(None),
            request_bytes_max=1 << 20,
            duplicate_window_records=0,
        )
        home = Partition(self.catalogue.requests, 0)
        _result_of(self.router.restore(home, None, _NO_LOG))

    def decide(self, record: Record) -> Effect:
        """Return the effect of one request, without a signature."""
        return self._work([record])[0]

    def route(self, records: Sequence[Record]) -> list[Effect]:
        """Return the effects of one poll, sealed as one transaction."""
        effects = self._work(records)
        sealed, _ = self.signer.seal("chain", None, effects)
        return [*effects, Effect(None, sealed)]

    def _work(self, records: Sequence[Record]) -> list[Effect]:
        return list(_result_of(self.router.work(records[0].partition, records)).effects)


def _result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits for something")
