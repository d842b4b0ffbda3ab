"""Identify the Kafka that answers at a port, with the least of Kafka's protocol."""

import socket
import struct
from pathlib import Path

from topics.embedded_broker.jars import BrokerError
from topics.embedded_broker.settings import HOST


def formatted_cluster(meta_properties: Path) -> str:
    """Return the id of the cluster that a data directory was formatted for.

    Raises:
        BrokerError: the file names no cluster.
    """
    for line in meta_properties.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name == "cluster.id":
            return value
    raise BrokerError(f"{meta_properties} names no cluster.id; choose another data directory")


def serving_cluster(port: int, node: int) -> str | None:
    """Return the id of the cluster at this port; None while this node doesn't serve clients.

    Requests metadata (version 2) of no topic: a starting broker doesn't list itself.

    Raises:
        OSError: nothing answers there yet.
    """
    request = struct.pack(">hhihi", 3, 2, 1, -1, 0)
    with socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            length_bytes = answer.read(4)
            if len(length_bytes) < 4:
                raise ConnectionResetError
            answer.read(4)  # the correlation id
            (brokers,) = struct.unpack(">i", answer.read(4))
            nodes: set[int] = set()
            for _ in range(brokers):
                nodes.update(struct.unpack(">i", answer.read(4)))
                answer.read(*struct.unpack(">h", answer.read(2)))  # host
                answer.read(4)  # port
                (rack_bytes,) = struct.unpack(">h", answer.read(2))
                answer.read(max(rack_bytes, 0))
            (id_bytes,) = struct.unpack(">h", answer.read(2))
            return answer.read(id_bytes).decode() if node in nodes else None
