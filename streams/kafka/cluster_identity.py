"""The cluster that a process began with. A bootstrap name may lead to another one later.

Each answer that tells of the brokers has the id of their cluster. What was read, fenced and
promised is the first one's, and another has none of it.
"""

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError

logger = logging.getLogger(__name__)


class OtherClusterError(KafkaError):  # type: ignore[misc]
    """The brokers at the addresses of this process are of another cluster than it began with."""


class ClusterIdentity:
    """The id of a cluster, and that of another one which answers in its place."""

    def __init__(self, servers: Any) -> None:
        """Take the bootstrap servers, for messages."""
        self._servers = servers
        self._own: str | None = None
        self._other: str | None = None

    @property
    def is_away(self) -> bool:
        """True while another cluster answers in its place."""
        return self._other is not None

    def is_of(self, metadata: Any) -> bool:
        """Return whether an answer is of this cluster; the first one says which that is."""
        told: str | None = getattr(metadata, "cluster_id", None)
        if not told:
            return True
        if self._own is None:
            self._own = told
        if told == self._own:
            if self._other is not None:
                logger.warning("cluster %s is back at %s", told, self._servers)
            self._other = None
        elif told != self._other:
            self._other = told
            logger.error("%s", self.told())
        return told == self._own

    def told(self) -> str:
        """Return what is wrong, and what to do."""
        return (
            f"{self._servers} leads to the Kafka cluster {self._other}, and this process began with"
            f" {self._own}: it takes no work and writes nothing until that one is back; if it is to"
            " go on with the other, which has nothing of what was accepted or held, restart it"
        )


class KnownCluster(ClusterMetadata):  # type: ignore[misc]
    """The brokers and topics of one cluster, whatever others tell."""

    def __init__(self, identity: ClusterIdentity, **options: Any) -> None:
        super().__init__(**options)
        self._identity = identity

    def update_metadata(self, metadata: Any) -> None:
        """Learn from an answer if it is of this cluster."""
        if self._identity.is_of(metadata):
            super().update_metadata(metadata)


_identities: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, ClusterIdentity]] = (
    WeakKeyDictionary()
)


def other_cluster() -> str | None:
    """Return that another cluster answers a client of this process, and what to do; else None.

    Any thread may call this.
    """
    # Copied in one go: clients of other threads come and go meanwhile.
    loops = [loop for ref in _identities.keyrefs() if (loop := ref()) and not loop.is_closed()]
    for identity in [each for loop in loops for each in list(_identities[loop].values())]:
        if identity.is_away:
            return identity.told()
    return None


def identity_of(loop: asyncio.AbstractEventLoop, servers: Any) -> ClusterIdentity:
    """Return the one that all clients of these bootstrap servers share."""
    known = _identities.setdefault(loop, {})
    return known.setdefault(str(servers), ClusterIdentity(servers))
