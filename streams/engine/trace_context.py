"""The trace context of a record: W3C Trace Context, read so that a malformed one is ignored.

The ready-made instrumentation is not used: it loses a whole poll on one malformed ``traceparent``.
"""

from typing import NamedTuple, Self

from topics.records import headers as h

SAMPLED = 1


class Context(NamedTuple):
    """A record's trace, and the span that it comes from.

    ``span_id`` is 0 if the trace begins here. An unsampled context is passed on too, so that a
    failed request can be traced late under the id that its result has.
    """

    trace_id: int
    span_id: int
    is_sampled: bool

    @classmethod
    def of(cls, headers: h.Headers, name: str = h.TRACEPARENT) -> Self | None:
        """Return the context in a header; a malformed one counts as none."""
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
