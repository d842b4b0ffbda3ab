"""Access control: the least rights of each role, derived from the catalogue."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from topics.registry import Catalogue

ResourceType = Literal["Topic", "Group", "TransactionalId"]
Pattern = Literal["Literal", "Prefixed"]
Operation = Literal["Read", "Write", "Describe", "Create", "DescribeConfigs"]
RoleName = Literal[
    "client", "gateway", "router", "worker", "viewer", "auditor", "custodian", "steward", "operator"
]

# Of a broker it is asked which transactions are open on a partition; it tells those who may read.
REPAIR = "find there what a dying broker left open"


@dataclass(frozen=True, slots=True)
class Grant:
    """One right, in the terms of Kafka's access control lists. ``why`` is the reason for it.

    Write and Read include Describe, as in Kafka. Since Kafka 3.0, Write on a topic needs no
    IdempotentWrite on the cluster.
    """

    resource: ResourceType
    name: str
    pattern: Pattern
    operation: Operation
    why: str


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process or person, with its rights. ``pool`` is set for a worker only."""

    name: RoleName
    pool: str | None
    grants: tuple[Grant, ...]

    @property
    def label(self) -> str:
        """The role's name, with the pool where there is one."""
        return self.name if self.pool is None else f"{self.name} {self.pool}"

    @property
    def principal(self) -> str:
        """The principal that gets the rights if no other is named."""
        return f"User:shunter-{self.label.replace(' ', '-')}"

    def topics(self) -> list[str]:
        """Return the topics that the role can see one by one."""
        found = (g.name for g in self.grants if (g.resource, g.pattern) == ("Topic", "Literal"))
        return list(dict.fromkeys(found))


def roles(catalogue: Catalogue, pools: Sequence[str]) -> list[Role]:
    """Return every role for a fleet with these pools."""
    return [
        client(catalogue),
        gateway(catalogue),
        router(catalogue, pools),
        *(worker(catalogue, pool) for pool in pools),
        viewer(catalogue),
        auditor(catalogue),
        custodian(catalogue),
        steward(catalogue),
        operator(catalogue),
    ]


def client(catalogue: Catalogue) -> Role:
    """Return the rights of a client that submits requests and reads their results."""
    return _role(
        "client",
        [
            _topic(catalogue.requests, "Write", "submit requests"),
            _topic(catalogue.cancellations, "Write", "cancel requests"),
            _topic(catalogue.quotes, "Write", "ask what requests would cost"),
            _topic(catalogue.quote_answers, "Read", "follow the answers"),
            _topic(catalogue.results, "Read", "follow results"),
            _topic(catalogue.streams, "Read", "follow answers as they come"),
            _topic(catalogue.dead_letters, "Read", "follow what became a dead letter"),
        ],
    )


def gateway(catalogue: Catalogue) -> Role:
    """Return the rights of a gateway, a client that others speak to over HTTP."""
    return _role(
        "gateway",
        [
            _topic(catalogue.requests, "Write", "submit requests"),
            _topic(catalogue.requests, "Read", "know which lines of a batch were published"),
            _topic(catalogue.cancellations, "Write", "cancel what nobody waits for any more"),
            _topic(catalogue.results, "Read", "answer"),
            _topic(catalogue.streams, "Read", "pass answers on as they come"),
            _topic(catalogue.quote_answers, "Read", "tell what a request would cost"),
            _topic(catalogue.claims, "Write", "tell other gateways of an Idempotency-Key"),
            _topic(catalogue.claims, "Read", "know the Idempotency-Keys of others"),
            _topic(catalogue.pool_status, "Read", "tell when another try may find room"),
            _topic(catalogue.policies, "Read", "know the models and limits in force"),
        ],
    )


def router(catalogue: Catalogue, pools: Iterable[str]) -> Role:
    """Return the rights of a router, which is also a batcher, over these pools."""
    lanes = [topic.name for pool in pools for topic in catalogue.pool_topics(pool)]
    inputs = {
        catalogue.router_group: (catalogue.requests, catalogue.reroutes, catalogue.accounts),
        catalogue.batcher_group: (catalogue.held,),
        catalogue.canceller_group: (catalogue.cancellations,),
        catalogue.quality_group: (catalogue.comparisons,),
        catalogue.quote_group: (catalogue.quotes,),
    }
    written = [
        catalogue.held,
        catalogue.seen_ids,
        catalogue.accounts,
        catalogue.budgets,
        catalogue.quality,
        catalogue.quote_answers,
        *lanes,
        *_ends(catalogue),
    ]
    return _role(
        "router",
        [
            *_stages(inputs),
            _topic(catalogue.progress, "Read", "go on where its predecessor stopped"),
            _topic(catalogue.seen_ids, "Read", "know what came before"),
            _topic(catalogue.budgets, "Read", "know what budgets have left"),
            *_transactional_writes(written),
            *(_topic(lane, "Read", "see what no worker is there to read") for lane in lanes),
            _topic(catalogue.pool_status, "Read", "know the workers' load"),
            _topic(catalogue.policies, "Read", "know the policy and the fleet in force"),
            _topic(catalogue.quality, "Read", "know which variants have drifted"),
            *_signing(catalogue),
        ],
    )


def worker(catalogue: Catalogue, pool: str) -> Role:
    """Return the rights of a worker of one pool."""
    lanes = tuple(topic.name for topic in catalogue.pool_topics(pool))
    return _role(
        "worker",
        [
            *_stages({catalogue.worker_group(pool): lanes}),
            _topic(catalogue.progress, "Read", "go on where its predecessor stopped"),
            *_transactional_writes(
                [
                    catalogue.reroutes,
                    catalogue.accounts,
                    catalogue.streams,
                    catalogue.comparisons,
                    *_ends(catalogue),
                ]
            ),
            _topic(catalogue.pool_status, "Write", "report its load"),
            _topic(catalogue.cancellations, "Read", "know what was cancelled"),
            _topic(catalogue.policies, "Read", "know the policy and the fleet in force"),
            *_signing(catalogue),
        ],
        pool,
    )


def viewer(catalogue: Catalogue) -> Role:
    """Return the rights of a viewer of the live view; held requests include their payload."""
    return _role(
        "viewer",
        [
            _topic(catalogue.evidence, "Read", "see what is decided and what came of it"),
            _topic(catalogue.pool_status, "Read", "see the workers' load"),
            _topic(catalogue.held, "Read", "see what waits"),
            _topic(catalogue.quality, "Read", "see which variants have drifted"),
        ],
    )


def auditor(catalogue: Catalogue) -> Role:
    """Return the rights of an auditor, who reads the audit trail and changes nothing."""
    return _role(
        "auditor",
        [
            _topic(catalogue.evidence, "Read", "tell a request's story"),
            _topic(catalogue.evidence, "DescribeConfigs", "know how long it is kept there"),
            _topic(catalogue.evidence_roots, "Read", "check what was signed over it"),
            _topic(catalogue.evidence_keys, "Read", "know who may sign"),
            _topic(catalogue.evidence_salts, "Read", "compare a text with its digest"),
            _topic(catalogue.progress, "Read", "see whether the newest is missing"),
            _topic(catalogue.results, "Read", "compare it with the result"),
            _topic(catalogue.policies, "Read", "make a decision again by its policy"),
        ],
    )


def custodian(catalogue: Catalogue) -> Role:
    """Return the rights of a custodian, who revokes keys and forgets tenants."""
    return _role(
        "custodian",
        [
            _topic(catalogue.evidence_keys, "Read", "know which keys there are"),
            _topic(catalogue.evidence_keys, "Write", "revoke a key"),
            _topic(catalogue.evidence_salts, "Read", "find the salts of a tenant"),
            _topic(catalogue.evidence_salts, "Write", "forget a tenant"),
        ],
    )


def steward(catalogue: Catalogue) -> Role:
    """Return the rights of a steward, who decides which policy and which fleet are in force."""
    pools = f"{catalogue.prefix}.pool."
    return _role(
        "steward",
        [
            _topic(catalogue.policies, "Read", "know what is in force"),
            _topic(catalogue.policies, "Write", "apply a policy or a fleet"),
            Grant("Topic", pools, "Prefixed", "Describe", "see that a pool has its topics"),
        ],
    )


def operator(catalogue: Catalogue) -> Role:
    """Return the rights of an operator, who creates and checks the topics but reads no record."""
    prefix = f"{catalogue.prefix}."
    operations: tuple[Operation, ...] = ("Create", "Describe", "DescribeConfigs")
    return _role(
        "operator",
        [
            Grant("Topic", prefix, "Prefixed", operation, "create and check the topics")
            for operation in operations
        ],
    )


def _role(name: RoleName, grants: Iterable[Grant], pool: str | None = None) -> Role:
    """Return a role; the first of several reasons for one right is kept."""
    distinct: dict[tuple[str, ...], Grant] = {}
    for grant in grants:
        distinct.setdefault((grant.resource, grant.name, grant.operation), grant)
    return Role(name, pool, tuple(distinct.values()))


def _topic(name: str, operation: Operation, why: str) -> Grant:
    return Grant("Topic", name, "Literal", operation, why)


def _ends(catalogue: Catalogue) -> list[str]:
    """Return the topics that both routers and workers write in their transactions."""
    return [
        catalogue.results,
        catalogue.evidence,
        catalogue.evidence_roots,
        catalogue.evidence_salts,
        catalogue.dead_letters,
        catalogue.progress,
    ]


def _signing(catalogue: Catalogue) -> Iterator[Grant]:
    yield _topic(catalogue.evidence_keys, "Write", "publish its key and its last roots")


def _stages(inputs: dict[str, tuple[str, ...]]) -> Iterator[Grant]:
    """Yield the rights to consume topics by group, with a producer for each of their partitions."""
    for group, topics in inputs.items():
        yield Grant("Group", group, "Literal", "Read", "share the partitions, commit offsets")
        for topic in topics:
            yield _topic(topic, "Read", "take its work")
            # Not `{group}-` alone, which the ids of a pool whose name goes on after ours match.
            ids = f"{group}-{topic}-"
            yield Grant("TransactionalId", ids, "Prefixed", "Write", "one transaction per step")


def _transactional_writes(topics: Iterable[str]) -> Iterator[Grant]:
    for topic in topics:
        yield _topic(topic, "Write", "pass on what comes of it")
        yield _topic(topic, "Read", REPAIR)


def kafka_acls(role: Role, principal: str, bootstrap_servers: str) -> Iterator[str]:
    """Yield the ``kafka-acls.sh`` lines that give a principal the role's rights."""
    option = {"Topic": "--topic", "Group": "--group", "TransactionalId": "--transactional-id"}
    operations: dict[tuple[ResourceType, str, Pattern], list[str]] = {}
    for grant in role.grants:
        key = (grant.resource, grant.name, grant.pattern)
        operations.setdefault(key, []).append(f"--operation {grant.operation}")
    for (resource, name, pattern), wanted in operations.items():
        words = [
            f"kafka-acls.sh --bootstrap-server {bootstrap_servers} --add",
            f"--allow-principal {shlex.quote(principal)}",
            *wanted,
            f"{option[resource]} {name}",
            *(["--resource-pattern-type prefixed"] if pattern == "Prefixed" else []),
        ]
        yield " ".join(words)
