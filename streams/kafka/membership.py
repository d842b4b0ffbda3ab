"""Membership of a consumer group: partition assignment, and notice of each rebalance."""

from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from streams.engine.log import Membership, Partition

# Partition counts that a group knows at a time: 100 bytes of each join apiece.
ASSIGNORS_MAX = 500


def assignors(partitions: int) -> tuple[type[RoundRobinPartitionAssignor], ...]:
    """Return how a group assigns its partitions: round robin.

    A returning static member gets its old partitions without a rebalance, even if topics have more
    partitions by now. An assignor name with their number in it changes what the members agree on
    once all know the new one, and Kafka then rebalances. The names for fewer partitions are offered
    too: of members that joined before its own restart, a broker knows only the name that they
    agreed on, and admits nobody who does not know that.
    """
    base = RoundRobinPartitionAssignor
    names = [f"{base.name}-{number}" for number in range(partitions, 0, -1)]
    numbered = (type("_Numbered", (base,), {"name": name}) for name in names[:ASSIGNORS_MAX])
    return *numbered, base


class MembershipListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notifies a membership of each rebalance."""

    def __init__(self, membership: Membership, consumer: AIOKafkaConsumer) -> None:
        self._membership = membership
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Release partitions."""
        await self._membership.revoked([Partition(*p) for p in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Receive partitions."""
        # Until they are polled: the answer to a fetch, which the broker delays for half a second if
        # nothing is new, would come before those to a takeover's requests.
        self._consumer.pause(*assigned)
        await self._membership.assigned([Partition(*p) for p in assigned])
