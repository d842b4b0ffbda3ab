"""Report the topics' state against what the catalogue declares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from topics.admin.replication import REPLICAS, Replication
from topics.registry import Topic

PARTITIONS = "partitions"

State = Literal["created", "ok", "missing", "differs"]


class Shape(NamedTuple):
    """How many partitions a topic has, and replicas the one of them that has the fewest."""

    partitions: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not as it should be: a configuration key, PARTITIONS or REPLICAS."""

    setting: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class TopicReport:
    """How one topic stands. ``created`` is told by ``apply`` only, ``missing`` by ``describe``."""

    name: str
    state: State
    partitions: int
    replicas: int
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogueReport:
    """How all topics stand, in the catalogue's order."""

    topics: tuple[TopicReport, ...]
    replication: Replication

    def names(self, state: State) -> list[str]:
        """Return the topics in a state."""
        return [topic.name for topic in self.topics if topic.state == state]

    @property
    def is_complete(self) -> bool:
        """Whether each topic is there, and as the catalogue wants it."""
        return all(topic.state in {"ok", "created"} for topic in self.topics)


def differences(
    topic: Topic, replication: Replication, shape: Shape, config: Mapping[str, str | None]
) -> tuple[Difference, ...]:
    """Return what of a topic is not as it should be."""
    found = {PARTITIONS: str(shape.partitions), REPLICAS: str(shape.replicas), **config}
    wrong = {PARTITIONS: str(topic.partitions)} if shape.partitions != topic.partitions else {}
    wrong |= {name: value for name, value in topic.config().items() if found.get(name) != value}
    wrong |= replication.differences(shape.replicas, config)
    return tuple(
        Difference(name, value, "unset" if found.get(name) is None else str(found[name]))
        for name, value in wrong.items()
    )
