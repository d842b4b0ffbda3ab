"""Open transactions that block a partition's readers, and when they end, asked of the brokers.

The leader of a partition knows which producers have a transaction open there. A producer's
coordinator knows if it is still open, and when it will abort it. Where the two differ the
transaction hangs (KIP-664): the coordinator has ended it, or has lost it, and no marker will come.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError, for_code
from aiokafka.protocol.admin import DescribeConfigsRequest

from streams.engine.log import Partition
from streams.kafka.protocol import DescribeProducers, DescribeTransactions, ListTransactions
from streams.kafka.reader import reader
from topics import Settings

_BROKER = 4
_TIMEOUT_MAX = "transaction.max.timeout.ms"
_ONGOING = "Ongoing"
_ENDED = frozenset({"Empty", "CompleteCommit", "CompleteAbort", "Dead"})


class OpenTransaction(NamedTuple):
    """The oldest transaction that is open on a partition. Times are epoch seconds.

    Attributes:
        producer_id: its producer's.
        start_offset: of its first record there.
        written_at: the time of its last record there, None where that has none.
        transactional_id: its client's; None where no coordinator tells this process of it.
        ends_at: when its coordinator aborts it, if it is not ended before; None where none will or
            tells.
        hangs: whether its coordinator has ended it, or does not count the partition to it.
        timeout_s_max: longest that brokers let one be open, None where this process may not ask.
    """

    producer_id: int
    start_offset: int
    written_at: float | None = None
    transactional_id: str | None = None
    ends_at: float | None = None
    hangs: bool = False
    timeout_s_max: float | None = None


class _Coordinated(NamedTuple):
    """A coordinator's answer on the newest transaction of a producer."""

    transactional_id: str
    state: str
    ends_at: float
    partitions: frozenset[Partition]


async def find_open(
    settings: Settings, partitions: Collection[Partition]
) -> Mapping[Partition, OpenTransaction]:
    """Return the oldest open transaction of each partition that has one.

    Raises:
        KafkaError: a broker does not answer, or a right is missing.
        OSError: the same.
    """
    async with reader(settings, [], {p.topic for p in partitions}) as consumer:
        client = consumer._client  # noqa: SLF001 - for requests that aiokafka does not have
        found = await _oldest(client, partitions)
        if not found:
            return {}
        known = await _coordinated(client, {each.producer_id for each in found.values()})
        timeout_s_max = await _timeout_s_max(client)
        # A transaction that has ended meanwhile is in no coordinator either.
        after = await _oldest(client, found)
    return {
        partition: _judged(partition, each, known.get(each.producer_id), timeout_s_max)
        for partition, each in found.items()
        if (still := after.get(partition)) and still.start_offset == each.start_offset
    }


def _judged(
    partition: Partition,
    found: OpenTransaction,
    known: _Coordinated | None,
    timeout_s_max: float | None,
) -> OpenTransaction:
    found = found._replace(timeout_s_max=timeout_s_max)
    if known is None:
        return found
    is_lost = known.state == _ONGOING and partition not in known.partitions
    hangs = is_lost or known.state in _ENDED
    return found._replace(
        transactional_id=known.transactional_id,
        ends_at=known.ends_at if known.state == _ONGOING and not hangs else None,
        hangs=hangs,
    )


async def _oldest(
    client: AIOKafkaClient, partitions: Collection[Partition]
) -> dict[Partition, OpenTransaction]:
    by_leader: dict[int, list[TopicPartition]] = {}
    for partition in partitions:
        leader = client.cluster.leader_for_partition(TopicPartition(*partition))
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(str(partition))
        by_leader.setdefault(leader, []).append(TopicPartition(*partition))
    found: dict[Partition, OpenTransaction] = {}
    for leader, wanted in by_leader.items():
        response = await client.send(leader, DescribeProducers(wanted))
        for topic, numbers, _ in response.topics:
            for number, code, _, producers, _ in numbers:
                _raise_for(code, f"{topic}[{number}]")
                opened = [
                    OpenTransaction(producer_id, start, at_ms / 1000 if at_ms >= 0 else None)
                    for producer_id, _, _, at_ms, _, start, _ in producers
                    if start >= 0
                ]
                if opened:
                    found[Partition(topic, number)] = min(opened, key=lambda o: o.start_offset)
    return found


async def _coordinated(
    client: AIOKafkaClient, producer_ids: Collection[int]
) -> dict[int, _Coordinated]:
    """Return what coordinators report on these producers, leaving out those we may not see."""
    found: dict[int, _Coordinated] = {}
    # Each lists those that it coordinates.
    for node in [broker.nodeId for broker in client.cluster.brokers()]:
        listed = await client.send(node, ListTransactions(producer_ids))
        _raise_for(listed.error_code, f"transactions of broker {node}")
        ids = [transactional_id for transactional_id, *_ in listed.transaction_states]
        if not ids:
            continue
        described = await client.send(node, DescribeTransactions(*ids))
        for code, name, state, timeout_ms, start_ms, *own in described.transaction_states:
            producer_id, _, topics, _ = own
            if code == 0:
                partitions = frozenset(
                    Partition(topic, number) for topic, numbers, _ in topics for number in numbers
                )
                ends_at = (start_ms + timeout_ms) / 1000
                found[producer_id] = _Coordinated(name, state, ends_at, partitions)
    return found


async def _timeout_s_max(client: AIOKafkaClient) -> float | None:
    node = client.get_random_node()
    request = DescribeConfigsRequest([(_BROKER, str(node), [_TIMEOUT_MAX])])
    ((code, _, _, _, settings),) = (await client.send(node, request)).resources
    values: list[Any] = [setting[1] for setting in settings if setting[0] == _TIMEOUT_MAX]
    # It needs a right on the cluster, which no role has.
    return None if code or not values else int(values[0]) / 1000


def _raise_for(code: int, what: str) -> None:
    if code:
        raise for_code(code)(what)
