"""A piece of an answer, on the streams topic as it comes; the last one is the result."""

from dataclasses import dataclass
from typing import Any

from topics.records.placement import Placement
from topics.records.result import Result


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """One piece, keyed by request id; pieces of a request are in order on one partition.

    A request that is run again, after a failure or the death of its worker, begins again with
    ``index`` 0; earlier pieces are then void. ``chunk`` is as an OpenAI-compatible server streams
    it. The first piece of a run has the ``placement``, which a reader then knows before the result;
    the last has the ``result`` in place of a chunk. ``at`` is epoch seconds.
    """

    id: str
    attempt: int
    index: int
    at: float
    chunk: Any = None
    result: Result | None = None
    placement: Placement | None = None
