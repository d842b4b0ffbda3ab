"""Settings of Kafka nodes that start quickly, stay small and recover quickly."""

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"

# Measured with 2 cores on Kafka 4.3.1: the client compiler and the serial collector start the
# broker in 1.6 s rather than 2.1 s, save 100 MB, and carry 200,000 records of 1 KB a second.
JVM_FLAGS = (
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    # It logs every 50 ms of a restart that this very broker isn't up yet.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.clients.NetworkClient=error",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)

# Three nodes share the machine that one node has for itself.
HEAP_MIB, HEAP_MIB_OF_SEVERAL = 512, 256

MESSAGE_BYTES_MAX = 16 * 1024 * 1024

NODE_SETTINGS: dict[str, str] = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    # A dead producer's transaction blocks readers until this looks, after its timeout.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # What a client may ask for: for so long one that hangs keeps what others publish unread. The
    # default is 15 minutes.
    "transaction.max.timeout.ms": "60000",
    "broker.heartbeat.interval.ms": "500",
    "message.max.bytes": str(MESSAGE_BYTES_MAX),
    "replica.fetch.max.bytes": str(MESSAGE_BYTES_MAX),
    # The default takes 128 MB of the heap.
    "log.cleaner.dedupe.buffer.size": str(4 * 1024 * 1024),
}


# A broker that comes back from kill -9 must wait until its former session has expired: 11.6 s from
# start to ready with the default of 9 s.
SESSION_MS = 2000
# Of several nodes one that lives, on a busy machine, must not be taken for dead.
SESSION_MS_OF_SEVERAL = 4000
# When a leader moves, its followers may ask it before it knows that it leads, and then wait for
# this backoff, or still wait for news of other partitions. Nothing is written meanwhile. With the
# defaults, 1 s and 500 ms, a request that comes in a rolling restart waits for a second more.
FOLLOWER_SETTINGS = {"replica.fetch.backoff.ms": "50", "replica.fetch.wait.max.ms": "100"}
# What of a topic Kafka keeps, and how much of that must have a record before it counts as written.
REPLICAS_MAX, IN_SYNC_MIN = 3, 2


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a Kafka, broker and controller in one.

    Attributes:
        number: its id, counted from 1.
        controller_ports: controller ports of all nodes by number; empty for a single node, which
            chooses its own.
        cluster_id: cluster that its data directory is formatted for; None chooses one.
    """

    number: int = 1
    controller_ports: Mapping[int, int] = field(default_factory=dict)
    cluster_id: str | None = None

    @property
    def of_several(self) -> bool:
        """True if there are other nodes."""
        return len(self.controller_ports) > 1

    @property
    def heap_flag(self) -> str:
        """Return the flag that limits the heap of its JVM."""
        return f"-Xmx{HEAP_MIB_OF_SEVERAL if self.of_several else HEAP_MIB}m"

    def settings(self) -> dict[str, str]:
        """Return the server properties that depend on the number of nodes."""
        nodes = max(1, len(self.controller_ports))
        replicas = min(REPLICAS_MAX, nodes)
        in_sync = IN_SYNC_MIN if replicas > IN_SYNC_MIN else 1
        return {
            "node.id": str(self.number),
            "default.replication.factor": str(replicas),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(replicas),
            "transaction.state.log.replication.factor": str(replicas),
            "transaction.state.log.min.isr": str(in_sync),
            "share.coordinator.state.topic.replication.factor": str(replicas),
            "share.coordinator.state.topic.min.isr": str(in_sync),
            "broker.session.timeout.ms": str(
                SESSION_MS_OF_SEVERAL if self.of_several else SESSION_MS
            ),
            **(FOLLOWER_SETTINGS if self.of_several else {}),
        }


@dataclass(frozen=True, slots=True)
class Listener:
    """One more port on which the broker listens.

    Attributes:
        name: the listener's name in Kafka's settings, in capitals; not CLIENT or CONTROLLER.
        port: where the broker listens.
        advertised_port: the port clients are sent to, such as that of a proxy.
    """

    name: str
    port: int
    advertised_port: int


def server_properties(
    *,
    data_dir: Path,
    port: int,
    node: Node,
    extra_listeners: Sequence[Listener] = (),
    properties: Mapping[str, str] | None = None,
) -> str:
    """Return the text of ``server.properties``; ``properties`` override the defaults here."""
    clients = [Listener("CLIENT", port, port), *extra_listeners]
    controller_ports = node.controller_ports or {node.number: free_port()}
    controller_port = controller_ports[node.number]
    controller = Listener("CONTROLLER", controller_port, controller_port)
    settings = {
        **NODE_SETTINGS,
        **node.settings(),
        "log.dirs": str(data_dir),
        "controller.quorum.voters": ",".join(
            f"{number}@{HOST}:{each}" for number, each in controller_ports.items()
        ),
        "listeners": ",".join(
            f"{each.name}://{HOST}:{each.port}" for each in [*clients, controller]
        ),
        "advertised.listeners": ",".join(
            f"{each.name}://{HOST}:{each.advertised_port}" for each in clients
        ),
        "listener.security.protocol.map": ",".join(
            f"{each.name}:PLAINTEXT" for each in [*clients, controller]
        ),
        **(properties or {}),
    }
    return "".join(f"{name}={_escaped(value)}\n" for name, value in settings.items())


def _escaped(value: str) -> str:
    """Return a value for Java's property files, which need backslashes and line ends escaped."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def free_port() -> int:
    """Return a port of ``HOST`` on which nothing listens now, below the ephemeral ports of clients.

    The kernel gives ports above 32767 to outgoing connections. While a broker restarts, a client
    that keeps connecting can be given that very port, connect to itself and block the broker.
    """
    while True:
        port = 16384 + secrets.randbelow(16384)
        try:
            require_free(port)
        except OSError:
            continue
        return port


def require_free(port: int) -> None:
    """Raise OSError, as ``bind`` does, unless a server may listen on this port of ``HOST`` now."""
    with socket.socket() as probe:
        # As Kafka does: connections of a predecessor in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
