"""Requests that are published in a simulation, and what may come of them."""

import random
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson
from stream_cases import MODEL

Pools = tuple[str, ...]
POOLS: Pools = ("premium-eu", "premium-us", "boards-us")
PARTITIONS = 2
# The tenant with a rate.
HURRIED = "hurried"
# And the one that may not go everywhere.
BOUND = "bound"
# Of each class, as the policy of the simulation has it.
DEADLINES_S = {"chat": 40.0, "summarization": 60.0}


@dataclass(slots=True)
class Expected:
    """A request that was accepted: how often it was published, and where it may run."""

    id: str
    pools: tuple[str, ...]
    deadline_s: float
    value: bytes = b""
    is_refused: bool = False
    """The log takes neither the request on its way nor its answer."""
    is_known_cancelled: bool = False
    """Cancelled so long before that it may end in no other way."""


class Item(NamedTuple):
    """Something to publish. ``id`` is that of a request, which need not be one."""

    kind: Literal["request", "cancel", "bad"]
    id: str = ""


@dataclass(slots=True)
class Workload:
    """What is to be published, in order, and what the requests among it may lead to."""

    order: list[Item] = field(default_factory=list)
    expected: dict[str, Expected] = field(default_factory=dict)
    homes: dict[str, int] = field(default_factory=dict)
    """The partition on which a client publishes a request, as a rule."""

    def add(self, rng: random.Random, name: str, fields: dict[str, Any], pools: Pools) -> Expected:
        """Expect a request."""
        request = {
            "id": name,
            "model": MODEL,
            "tenant": rng.choice(("a", "b", HURRIED)),
            "body": {"messages": [{"role": "user", "content": "which track?"}]},
        } | fields
        deadline_s = DEADLINES_S[fields.get("task", "chat")]
        expected = Expected(name, pools, deadline_s, orjson.dumps(request))
        self.expected[name] = expected
        self.homes[name] = rng.randrange(PARTITIONS)
        return expected


# What a request asks for, and the pools that this leaves, by the fleet of stream_cases.
KINDS: list[tuple[dict[str, Any], Pools]] = [
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
    """Return requests of all kinds; some published twice, some cancelled, bad records between."""
    work = Workload()
    for number in range(count):
        name = f"r{number}"
        fields, pools = KINDS[rng.randrange(len(KINDS)) if number > 3 else number % 3]
        work.add(rng, name, fields, pools).is_refused = rng.random() < 0.05
        work.order += [Item("request", name)] * (2 if rng.random() < 0.1 else 1)
        if rng.random() < 0.08:
            work.order.append(Item("bad"))
    # Second copies come some time later.
    for _ in range(count // 4):
        a, b = rng.randrange(len(work.order)), rng.randrange(len(work.order))
        work.order[a], work.order[b] = work.order[b], work.order[a]
    for at in reversed(range(len(work.order))):
        kind, name = work.order[at]
        if kind == "request" and rng.random() < 0.12:
            # Before it is published, soon after it, or when it has ended long ago.
            work.order.insert(
                max(0, at + rng.choice((-2, 0, 1, 1, 2, 3, 10))), Item("cancel", name)
            )
    for name in ("", "nobody"):
        if rng.random() < 0.1:
            work.order.insert(rng.randrange(len(work.order)), Item("cancel", name))
    return work
