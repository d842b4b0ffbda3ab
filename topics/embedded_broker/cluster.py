"""A Kafka of several nodes on this machine, to test clients against the death of a broker.

Each node is an ``EmbeddedBroker`` with a port and a data directory of its own, broker and
controller in one, and can be killed, stopped and started while the others live.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Never, Self

from topics.embedded_broker.broker import (
    START_S_MAX,
    BrokerError,
    EmbeddedBroker,
    new_cluster_id,
    node_dir,
    require_nodes,
)
from topics.embedded_broker.probe import formatted_cluster
from topics.embedded_broker.settings import Listener, Node, free_port

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
START_POLL_S = 0.05


class EmbeddedCluster:
    """Kafka nodes as children of this process; they end with it in any case.

    The methods block, as a node's do: about 15 s for a first start of three on two cores.
    """

    def __init__(
        self,
        nodes: int,
        *,
        port: int = 0,
        data_dir: Path | None = None,
        properties: Mapping[str, str] | None = None,
        extra_listeners: Sequence[Sequence[Listener]] = (),
        announce: Callable[[str], object] = logger.info,
    ) -> None:
        """Take the settings; ``start`` does the work.

        Args:
            nodes: number of nodes.
            port: port of the first node on 127.0.0.1; the others listen on the next ports. 0
                chooses free ones.
            data_dir: parent of each node's data directory; None takes temporary ones, which
                ``stop`` removes.
            properties: server properties of each node that replace or add to ours.
            extra_listeners: further ports to listen on, for each node in turn.
            announce: called with the progress of a start.

        Raises:
            BrokerError: the data directory has the data of another number of nodes.
        """
        numbers = range(1, nodes + 1)
        ports = _free_ports(2 * nodes)
        own, controller_ports = ports[:nodes], dict(zip(numbers, ports[nodes:], strict=True))
        cluster_id = new_cluster_id()
        if data_dir is not None:
            require_nodes(data_dir, nodes)
            cluster_id = _cluster_of(data_dir) or cluster_id
        listeners = extra_listeners or [()] * nodes
        self._announce = announce
        self._is_kept = data_dir is not None
        self.nodes = [
            EmbeddedBroker(
                port=port + number - 1 if port else own[number - 1],
                data_dir=None if data_dir is None else node_dir(data_dir, number),
                properties=properties,
                extra_listeners=listeners[number - 1],
                announce=announce,
                node=Node(number, controller_ports, cluster_id),
            )
            for number in numbers
        ]

    @property
    def bootstrap_servers(self) -> str:
        """The addresses for clients, separated by commas."""
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def start(self) -> Self:
        """Start all nodes and return once each answers its clients.

        Raises:
            BrokerError: a node runs already, or can't start; the others are then stopped.
        """
        if any(node.running for node in self.nodes):
            raise BrokerError(f"a node of {self.bootstrap_servers} runs already")
        self._announce(f"{len(self.nodes)} nodes start; this takes some seconds")
        try:
            self._each(EmbeddedBroker.launch)
            self._await_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def _await_answers(self) -> None:
        """Wait for all nodes at once: none answers without a majority, and one may have failed."""
        give_up_at = time.monotonic() + START_S_MAX * len(self.nodes)
        waiting = dict(enumerate(self.nodes, 1))
        while waiting:
            for number, node in list(waiting.items()):
                if node.answers():
                    self._announce(f"node {number} answers on {node.bootstrap_servers}")
                    del waiting[number]
            if waiting and time.monotonic() > give_up_at:
                silent = ", ".join(f"{n}, whose log is {b.log_path}" for n, b in waiting.items())
                raise BrokerError(f"the nodes didn't all answer; silent are {silent}")
            time.sleep(START_POLL_S)

    def stop(self) -> None:
        """End all nodes together, immediately if no data is kept."""
        if not self._is_kept:
            self._each(EmbeddedBroker.kill)
        self._each(EmbeddedBroker.stop)

    def wait(self) -> Never:
        """Block while a node lives, and announce each that ends.

        Raises:
            BrokerError: all have ended by themselves; the message is the last one's.
        """
        told: set[int] = set()
        while len(told) < len(self.nodes):
            for number, node in enumerate(self.nodes, 1):
                if not node.running and number not in told:
                    told.add(number)
                    self._announce(f"node {number} has ended; its log is {node.log_path}")
            time.sleep(LOOK_EVERY_S)
        self.nodes[-1].wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _each(self, do: Callable[[EmbeddedBroker], object]) -> None:
        """Run the action on all nodes at once; raise the first failure when all have finished."""
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            outcomes = [threads.submit(partial(do, node)) for node in self.nodes]
        for outcome in outcomes:
            outcome.result()


def _free_ports(count: int) -> list[int]:
    """Return this many different free ports."""
    found: dict[int, None] = {}
    while len(found) < count:
        found[free_port()] = None
    return list(found)


def _cluster_of(data_dir: Path) -> str | None:
    """Return the cluster id that a node of this data directory was formatted for, or None."""
    for meta in sorted(data_dir.glob("node-*/data/meta.properties")):
        return formatted_cluster(meta)
    return None
