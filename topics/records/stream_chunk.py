"""A piece of an answer, on the streams topic as it comes; the last one is the result."""

from dataclasses import dataclass
from typing import Any

from topics.records.result import Result


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """One piece, keyed by request id; pieces of a request are in order on one partition.

    A request that is run again, after a failure or the death of its worker, begins again with
    ``index`` 0; earlier pieces are then void. ``chunk`` is as an OpenAI-compatible server streams
    it. The last piece has the ``result`` instead. ``at`` is epoch seconds.
    """

    id: str
    attempt: int
    index: int
    at: float
    chunk: Any = None
    result: Result | None = None
