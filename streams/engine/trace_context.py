"""The trace context of a record: W3C Trace Context, read so that a malformed one is ignored.

The ready-made instrumentation is not used: it loses a whole poll on one malformed ``traceparent``.
"""

from typing import NamedTuple, Self

from topics.records import headers as h

SAMPLED = 1


class Context(NamedTuple):
    """Which trace a record belongs to, and the span that it comes from.

    ``span_id`` is 0 where the trace begins here. One that is not sampled travels all the same, so
    that what ends badly can be traced late under the id that the result has.
    """

    trace_id: int
    span_id: int
    is_sampled: bool

    @classmethod
    def of(cls, headers: h.Headers, name: str = h.TRACEPARENT) -> Self | None:
        """Return the context that a header carries; a malformed one counts as none."""
        value = h.traceparent(headers, name)
        if value is None:
            return None
        flags = int(value[53:55], 16)
        return cls(int(value[3:35], 16), int(value[36:52], 16), bool(flags & SAMPLED))

    def header(self) -> bytes:
        """Return the context as a ``traceparent``."""
        return traceparent(*self)


def traceparent(trace_id: int, span_id: int, is_sampled: bool) -> bytes:
    """Return a context as a ``traceparent``."""
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, is_sampled)
