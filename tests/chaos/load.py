"""Requests that are published while faults are injected, and what may become of each.

All of a request follows from its number, so that whoever reads a result back knows what was asked.
"""

import asyncio
import contextlib
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson
from aiokafka.errors import KafkaError
from running_system import System

MODEL = "llama-3.1-8b"
EU, US = "eu-west", "us-east"
# The first part of a key tells a request from what is none.
REQUEST, BAD = "r", "bad"


@dataclass(frozen=True)
class Kind:
    """A kind of request: its fields, where it may be served, and how it may end."""

    name: str
    fields: dict[str, Any]
    regions: frozenset[str] = frozenset({EU, US})
    precisions: frozenset[str] = frozenset({"fp8", "int8"})
    ends: frozenset[str] = frozenset({"completed", "expired", "rejected", "failed"})


# A chat turn goes straight to a pool: its latency tells of a fault.
DIRECT = Kind("direct", {"task": "chat"}, regions=frozenset({EU}))
WAITS = Kind("waits", {"task": "summarization"})
REGULATED = Kind(
    "regulated",
    {"task": "summarization", "constraints": {"data_class": "regulated"}},
    regions=frozenset({EU}),
)
PRECISE = Kind(
    "precise",
    {"task": "summarization", "constraints": {"precisions": ["int8"]}},
    precisions=frozenset({"int8"}),
)
NOWHERE = Kind(
    "nowhere",
    {"task": "chat", "constraints": {"regions": ["eu-north"]}},
    regions=frozenset({"eu-north"}),
    ends=frozenset({"rejected", "expired"}),
)
CANCELLED = Kind(
    "cancelled",
    {"task": "synthetic_data"},
    ends=frozenset({"cancelled", "completed", "expired", "rejected", "failed"}),
)


def kind_of(number: int) -> Kind:
    """Return what request number so-and-so is."""
    if number % 97 == 96:
        return NOWHERE
    if number % 61 == 60:
        return CANCELLED
    return (DIRECT, WAITS, DIRECT, REGULATED, DIRECT, WAITS, DIRECT, PRECISE)[number % 8]


def content_of(number: int) -> str:
    """Return the text of a request: a large one now and then."""
    return "why " * (10_000 if number % 53 == 52 else 20)


def is_twice(number: int) -> bool:
    """Tell whether this request is published twice."""
    return number % 50 == 49


def is_followed_by_bad(number: int) -> bool:
    """Tell whether a record that is no request comes after this one."""
    return number % 71 == 70


def id_of(number: int) -> str:
    """Return the request's id."""
    return f"{REQUEST}-{number}"


class Load:
    """Publishes at a steady beat; ``published_at`` has the time of each request."""

    def __init__(self, system: System, per_second: float, most: int | None = None) -> None:
        self._system = system
        self._per_second = per_second
        self._most = most
        self._to_cancel: list[str] = []
        self.published_at = array("d")
        self.acknowledged_at: dict[str, float] = {}
        """When Kafka had each record, by its key."""
        self.twice = True
        """Whether some are published twice; not where keys move to other partitions."""
        self.bad = True
        """Whether some records are no requests."""
        self.published_twice: set[int] = set()
        self.published_bad: set[str] = set()
        """Keys of the records that are no requests."""
        self.letters_deleted = False
        """Whether dead letters may be gone that nobody had read."""
        self.unsure: set[str] = set()
        """Keys of which the client does not know whether Kafka has them."""
        self.lost: set[str] = set()
        """Keys of records that Kafka has acknowledged, and lost since."""

    @property
    def may_be_missing(self) -> set[str]:
        """Keys that nobody need have served; one that somebody has ends as any other."""
        return self.unsure | self.lost

    def copies(self) -> Counter[str]:
        """Return how often each key was published."""
        names = map(id_of, range(len(self.published_at)))
        twice = map(id_of, self.published_twice)
        return Counter([*names, *twice, *self.published_bad])

    def between(self, since: float, until: float) -> range:
        """Return the numbers of what was published in a span of time."""
        at = self.published_at
        return range(bisect_left(at, since), bisect_right(at, until))

    async def publish(self) -> None:
        """Publish until cancelled, or until there are enough."""
        began = time.monotonic()
        while self._most is None or len(self.published_at) < self._most:
            behind = int((time.monotonic() - began) * self._per_second) - len(self.published_at)
            for _ in range(min(behind, 200)):
                await self._publish_next()
            await asyncio.sleep(0.01)

    async def _publish_next(self) -> None:
        number = len(self.published_at)
        kind = kind_of(number)
        body = {"model": MODEL, "messages": [{"role": "user", "content": content_of(number)}]}
        request = {"id": id_of(number), "body": body | {"max_tokens": 8}, **kind.fields}
        self.published_at.append(time.time())
        await self._send(id_of(number), orjson.dumps(request))
        if self.twice and is_twice(number):
            self.published_twice.add(number)
            await self._send(id_of(number), orjson.dumps(request))
        if self.bad and is_followed_by_bad(number):
            key = f"{BAD}-{number}"
            self.published_bad.add(key)
            await self._send(key, b'{"id": 5')
        if kind is CANCELLED:
            await self._cancel(id_of(number))

    async def _send(self, key: str, value: bytes) -> None:
        # Sent, not awaited: a dead broker must not keep the next from being asked for. The
        # producer is idempotent, so that a resend is no second request.
        try:
            sent = await self._system.producer.send(
                self._system.catalogue.requests, value, key=key.encode()
            )
        except KafkaError:
            self.unsure.add(key)
        else:
            sent.add_done_callback(lambda done: self._sent(key, done))

    def _sent(self, key: str, done: "asyncio.Future[Any]") -> None:
        if done.cancelled() or done.exception() is not None:
            self.unsure.add(key)
        else:
            self.acknowledged_at.setdefault(key, time.time())

    async def _cancel(self, request_id: str) -> None:
        """Cancel the one before, so that it has had time to get somewhere."""
        self._to_cancel.append(request_id)
        if len(self._to_cancel) > 1:
            with contextlib.suppress(KafkaError):
                await self._system.producer.send(
                    self._system.catalogue.cancellations,
                    b"{}",
                    key=self._to_cancel.pop(0).encode(),
                )
