"""The cancellations of the last day, as one process knows them.

The hold is partitioned by batch group, and running work by batch, so a request's id doesn't tell
which process has it. Every router and worker therefore reads every cancellation, and the process
that has the request ends it (docs/decisions/0008-cancellation.md).
"""

from collections.abc import Callable
from contextlib import suppress

from streams.engine.clock import Clock
from streams.engine.log import Record
from streams.kafka.follower import TopicFollower
from topics import BadRecordError, Cancellation, Catalogue, Settings, parse_cancellation
from topics.bounded_dict import BoundedDict
from topics.records.cancellation import CANCELLATION_S

# About 30 MB. Beyond it the oldest are forgotten, and have ended only requests found by then.
CANCELLATIONS_MAX = 100_000


class Cancellations:
    """The cancelled requests, including those that have not arrived yet."""

    def __init__(self, clock: Clock, cancellations_max: int = CANCELLATIONS_MAX) -> None:
        self._clock = clock
        self._known: BoundedDict[str, tuple[float, Cancellation]] = BoundedDict(cancellations_max)
        self._told: list[Callable[[str], object]] = []

    def tell(self, cancelled: Callable[[str], object]) -> None:
        """Call ``cancelled`` with the id of each cancellation from now on."""
        self._told.append(cancelled)

    def read(self, record: Record) -> None:
        """Add the cancellation in a record.

        Raises:
            BadRecordError: its key is no id.
        """
        request_id, cancellation = parse_cancellation(record.key, record.value)
        self.add(request_id, cancellation, record.came_at(self._clock.now()))

    def add(self, request_id: str, cancellation: Cancellation, at: float) -> None:
        """Add a cancellation published ``at``, epoch seconds."""
        self._known.put(request_id, (at, cancellation))
        if self.find(request_id) is not None:
            for cancelled in self._told:
                cancelled(request_id)

    def find(self, request_id: str) -> Cancellation | None:
        """Return the cancellation of a request, None if the last day has none."""
        known = self._known.get(request_id)
        if known is None or known[0] < self._clock.now() - CANCELLATION_S:
            return None
        return known[1]


class CancellationFollower(TopicFollower):
    """Keeps the cancellations up to date."""

    def __init__(self, settings: Settings, cancellations: Cancellations) -> None:
        super().__init__(settings, Catalogue(settings).cancellations)
        self._cancellations = cancellations

    def take(self, record: Record) -> None:
        """Add a cancellation; the canceller reports unreadable ones."""
        with suppress(BadRecordError):
            self._cancellations.read(record)


# What evidence says of each: the reason is the client's own text, which the client alone gets back.
CANCELLED = "the client cancelled the request"


def message_of(cancellation: Cancellation | None) -> str:
    """Return the reason of a cancellation, for the client."""
    reason = None if cancellation is None else cancellation.reason
    return CANCELLED + (f": {reason}" if reason else "")
