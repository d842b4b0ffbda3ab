"""A live view, fed with records as its topics would have them."""

from typing import Any

import orjson

from policies import compile_options
from streams.config.declarations import load_fleet, load_policy
from streams.engine.log import Partition, Record
from streams.live import LiveView, Snapshot, snapshot_of
from topics import Catalogue, Settings
from topics.records import headers as h

CATALOGUE = Catalogue(Settings())
OPTIONS, POLICY = compile_options(load_fleet(None)), load_policy(None)
NOW = 1_000_000.0
# Of members that no test asks for, what each record has.
PROFILE = {"created_at": 0, "deadline": 0, "latency_sensitive": True}
PLACEMENT = {
    "model_variant": "llama-3.1-8b-fp8",
    "precision": "fp8",
    "region": "r",
    "path": "direct",
}


class Topics:
    """Feeds a view with records as its topics would have them."""

    def __init__(self, **options: Any) -> None:
        self.now = NOW
        self.view = LiveView(CATALOGUE, OPTIONS, POLICY, since=NOW - 60, **options)

    def put(self, topic: str, value: bytes | None, key: str = "k", headers: Any = ()) -> None:
        ms = int(self.now * 1000)
        self.view.take(Record(Partition(topic, 0), 0, key.encode(), value, headers, ms), self.now)

    def step(self, request_id: str, step: str, at: float | None = None, **fields: Any) -> None:
        evidence = {
            "request_id": request_id,
            "step": step,
            "at": self.now if at is None else at,
            "writer": "w",
            "source": {"topic": "t", "partition": 0, "offset": 0},
            "task": "chat",
        }
        self.put(CATALOGUE.evidence, orjson.dumps(evidence | fields))

    def placed(self, request_id: str, *, on_premium: bool = False, **wanted: Any) -> None:
        profile = PROFILE | {"created_at": self.now, "deadline": self.now + 60} | wanted
        candidates = [PLACEMENT | {"pool": "silicon-us", "cost_usd": 0.0001}]
        refused = {"pool": "premium-us", "refused": "lane"}
        candidates.append(PLACEMENT | refused)
        if on_premium:
            candidates.append(PLACEMENT | {"pool": "premium-us", "cost_usd": 0.1})
            candidates.append(PLACEMENT | {"pool": "premium-eu", "cost_usd": 0.2})
        self.step(request_id, "placed", profile=profile, candidates=candidates)

    def executed(
        self,
        request_id: str,
        *,
        ttft_s: float = 0.1,
        finish_s: float = 1.0,
        usd: float = 0.001,
        path: str = "direct",
        **fields: Any,
    ) -> None:
        got = {"cost_usd": usd, "ttft_s": ttft_s, "finish_s": finish_s, "tpot_s": 0.01}
        placement = PLACEMENT | {"pool": "silicon-us", "path": path}
        usage = {"input_tokens": 1000, "output_tokens": 100}
        self.step(
            request_id, "executed", **{"got": got, "placement": placement, "usage": usage} | fields
        )

    def fell_back(self, request_id: str, pool: str) -> None:
        self.step(
            request_id,
            "fell_back",
            fallback={"pool": pool, "reason": "timeout"},
            reason="timeout",
        )

    def hold(self, request_id: str, group: str = "m|chat|batch|le512", **changes: Any) -> None:
        profile = {"deadline": self.now + 600, "window_s": 30.0, "batchable": True} | changes
        headers = [
            (h.PROFILE, orjson.dumps(profile)),
            (h.GROUP, group.encode()),
            (h.HELD_AT, repr(self.now).encode()),
        ]
        self.put(CATALOGUE.held, b"the payload", request_id, headers)

    def shown(self) -> Snapshot:
        return snapshot_of(self.view, self.now)


def of_class(snapshot: Snapshot, task: str = "chat") -> Any:
    return next(c for c in snapshot.classes if c.task == task)


def of_pool(snapshot: Snapshot, pool: str) -> Any:
    return next(p for p in snapshot.pools if p.pool == pool)
