"""The state of topics compared with the catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from topics.admin.replication import REPLICAS, Replication
from topics.registry import Topic

PARTITIONS = "partitions"

State = Literal["created", "ok", "missing", "differs"]


class Shape(NamedTuple):
    """A topic's number of partitions, and the fewest replicas of any of them."""

    partitions: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting with a wrong value: a configuration key, PARTITIONS or REPLICAS."""

    setting: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class TopicReport:
    """State of one topic. Only ``apply`` reports ``created``, only ``describe`` ``missing``."""

    name: str
    state: State
    partitions: int
    replicas: int
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogueReport:
    """State of all topics, in the catalogue's order."""

    topics: tuple[TopicReport, ...]
    replication: Replication

    def names(self, state: State) -> list[str]:
        """Return the topics in a state."""
        return [topic.name for topic in self.topics if topic.state == state]

    @property
    def is_complete(self) -> bool:
        """True if each topic exists as the catalogue declares it."""
        return all(topic.state in {"ok", "created"} for topic in self.topics)


def differences(
    topic: Topic, replication: Replication, shape: Shape, config: Mapping[str, str | None]
) -> tuple[Difference, ...]:
    """Return the differences of a topic from its declaration."""
    found = {PARTITIONS: str(shape.partitions), REPLICAS: str(shape.replicas), **config}
    wrong = {PARTITIONS: str(topic.partitions)} if shape.partitions != topic.partitions else {}
    wrong |= {name: value for name, value in topic.config().items() if found.get(name) != value}
    wrong |= replication.differences(shape.replicas, config)
    return tuple(
        Difference(name, value, "unset" if found.get(name) is None else str(found[name]))
        for name, value in wrong.items()
    )
