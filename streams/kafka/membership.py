"""Membership of a consumer group: partition assignment, and notice of each rebalance."""

from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from streams.engine.log import Membership, Partition

# So many numbers of partitions does a group know at a time: 100 bytes of each join apiece.
ASSIGNORS_MAX = 500


def assignors(partitions: int) -> tuple[type[RoundRobinPartitionAssignor], ...]:
    """Return how a group shares its partitions out: by turns.

    A static member that comes back is given what it had, without a rebalance, even where topics
    have more partitions by now. A name with their number in it changes what the members agree on
    once all know the new one, and Kafka lets them share out again. The names of fewer partitions
    are known too: of members that joined before it was started itself, a broker knows no name but
    the one that they agreed on, and takes nobody in who does not know that.
    """
    base = RoundRobinPartitionAssignor
    names = [f"{base.name}-{number}" for number in range(partitions, 0, -1)]
    numbered = (type("_Numbered", (base,), {"name": name}) for name in names[:ASSIGNORS_MAX])
    return *numbered, base


class MembershipListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells a membership of each rebalance."""

    def __init__(self, membership: Membership, consumer: AIOKafkaConsumer) -> None:
        self._membership = membership
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let partitions go."""
        await self._membership.revoked([Partition(*p) for p in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Be given partitions."""
        # Until they are polled: the answer to a fetch, which the broker holds back for half a
        # second where nothing is new, would stand before those to what a takeover asks.
        self._consumer.pause(*assigned)
        await self._membership.assigned([Partition(*p) for p in assigned])
