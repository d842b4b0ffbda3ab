"""Replication: replicas of each topic, and how many must be in sync to acknowledge a record.

With three replicas and at least two in sync, no acknowledged record is lost when any one broker
dies, and writes go on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

REPLICAS = "replication.factor"
IN_SYNC = "min.insync.replicas"
REPLICAS_MIN, IN_SYNC_MIN = 3, 2
BROKERS_DEFAULT = -1


@dataclass(frozen=True, slots=True)
class Replication:
    """Wanted replication of topics, by SHUNTER_REPLICATION_FACTOR and the number of brokers."""

    factor: int
    brokers: int

    @property
    def replicas(self) -> int:
        """Replicas of each topic."""
        chosen = self.factor != BROKERS_DEFAULT
        return self.factor if chosen else min(REPLICAS_MIN, self.brokers)

    @property
    def requested(self) -> int:
        """The factor to request of Kafka: a lone broker has a default of its own."""
        return self.factor if self.brokers == 1 else self.replicas

    def config(self) -> dict[str, str]:
        """Return the matching configuration of topics."""
        return {IN_SYNC: str(IN_SYNC_MIN)} if self.replicas >= REPLICAS_MIN else {}

    def differences(self, replicas: int, config: Mapping[str, str | None]) -> dict[str, str]:
        """Return the wrong settings of a topic, with the right values.

        More replicas than wanted are no difference. Requiring all replicas in sync is one, since
        then no broker may fail.
        """
        wanted: dict[str, str] = {}
        if replicas < self.replicas:
            wanted[REPLICAS] = str(self.replicas)
        in_sync, most = int(config.get(IN_SYNC) or 1), max(replicas, self.replicas)
        if most >= REPLICAS_MIN and in_sync < IN_SYNC_MIN:
            wanted[IN_SYNC] = str(IN_SYNC_MIN)
        elif in_sync >= most > 1:
            wanted[IN_SYNC] = str(most - 1)
        return wanted

    def shortfall(self) -> str | None:
        """Return what this number of brokers can't provide, or None if nothing is missing."""
        if self.brokers >= REPLICAS_MIN:
            return None
        found = "1 broker" if self.brokers == 1 else f"{self.brokers} brokers"
        return (
            f"Kafka has {found}, too few to lose one and nothing else: with {REPLICAS_MIN} each"
            f" topic gets {REPLICAS_MIN} replicas and {IN_SYNC}={IN_SYNC_MIN}"
        )
