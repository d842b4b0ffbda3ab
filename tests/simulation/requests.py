"""What is published in a simulation, and what may come of it."""

import random
from dataclasses import dataclass, field
from typing import Any

import orjson
from stream_cases import MODEL

POOLS = ("premium-eu", "premium-us", "boards-us")
FAST = ("premium-eu", "premium-us")


@dataclass(slots=True)
class Expected:
    """A request that was accepted: how often it was published, and where it may run."""

    id: str
    pools: tuple[str, ...]
    published: int = 0
    value: bytes = b""
    is_refused: bool = False
    """The log takes neither the request on its way nor its answer."""


@dataclass(slots=True)
class Workload:
    """What is to be published, in order: a request's id, or None for a bad record."""

    order: list[str | None] = field(default_factory=list)
    expected: dict[str, Expected] = field(default_factory=dict)


# What a request asks for, and the pools that this leaves, by the fleet of stream_cases.
KINDS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, POOLS),
    ({"task": "summarization"}, POOLS),
    ({"task": "summarization"}, POOLS),
    ({"constraints": {"data_class": "regulated"}}, ("premium-eu",)),
    ({"task": "summarization", "constraints": {"data_class": "regulated"}}, ("premium-eu",)),
    ({"constraints": {"exclude_pools": ["premium-eu"]}}, ("premium-us", "boards-us")),
    ({"task": "summarization", "constraints": {"precisions": ["int8"]}}, ("boards-us",)),
    ({"task": "summarization", "constraints": {"regions": ["us-east"]}}, POOLS[1:]),
    ({"constraints": {"pools": ["premium-us"]}}, ("premium-us",)),
    ({"constraints": {"regions": ["mars"]}}, ()),
    ({"model": "unheard-of"}, ()),
]


def make_workload(rng: random.Random, count: int) -> Workload:
    """Return requests of all kinds, among them some published twice and some bad records."""
    work = Workload()
    for number in range(count):
        name = f"r{number}"
        fields, pools = KINDS[rng.randrange(len(KINDS)) if number > 3 else number % 3]
        request = {
            "id": name,
            "model": MODEL,
            "tenant": rng.choice(("a", "b")),
            "body": {"messages": [{"role": "user", "content": "which track?"}]},
        } | fields
        expected = Expected(name, pools, value=orjson.dumps(request))
        expected.is_refused = rng.random() < 0.05
        work.expected[name] = expected
        work.order += [name] * (2 if rng.random() < 0.05 else 1)
        if rng.random() < 0.08:
            work.order.append(None)
    # Second copies come some time later.
    for _ in range(count // 4):
        a, b = rng.randrange(len(work.order)), rng.randrange(len(work.order))
        work.order[a], work.order[b] = work.order[b], work.order[a]
    return work
