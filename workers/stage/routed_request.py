"""A request on a lane of a pool, parsed once for its worker."""

from dataclasses import dataclass
from typing import Self

from streams.engine.log import Record
from streams.engine.trace_context import Context
from topics import (
    BadRecordError,
    Batch,
    Envelope,
    InferenceRequest,
    Placement,
    Profile,
    parse_request,
)
from topics.records import headers as h
from topics.registry import INGEST_BYTES_MAX
from workers.backends.base import urgency_of


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """A record of a lane: the client's request, and Shunter's knowledge of it.

    ``record`` includes its trace context, so that readers need no header for it. The profile has
    the attempt. ``released_at`` is the request's release from the hold, epoch seconds; None if it
    was never held. ``held_promise`` is what it was promised when it was held. ``batch_context`` is
    that of the batch's span.
    """

    record: Record
    request: InferenceRequest
    profile: Profile
    placement: Placement
    promised: Envelope | None
    batch: Batch | None
    released_at: float | None
    batch_context: Context | None
    held_promise: Envelope | None = None

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return the parsed record.

        All errors that make it a dead letter are found here, before it runs, and not when its
        answer is there. The value is parsed as in the router: backends run its body.

        Raises:
            BadRecordError: it can't be read, or value, profile, placement, batch or time of release
                is invalid. An invalid promise or trace context counts as missing.
        """
        record.check_readable()
        headers = record.headers
        profile = h.read_profile(headers)
        placement = h.read(headers, h.PLACEMENT, Placement)
        batch = h.read_batch(headers)
        released_at = h.read_time(headers, h.RELEASED_AT)
        request = parse_request(
            record.value, bytes_max=INGEST_BYTES_MAX, default_id=h.cloud_event_id(headers)
        )
        context = Context.of(headers) if record.context is None else None
        return cls(
            record if context is None else record._replace(context=context),
            request,
            profile,
            placement,
            _promised(headers, h.PROMISED),
            batch,
            released_at,
            Context.of(headers, h.BATCH_TRACEPARENT),
            _promised(headers, h.HELD_PROMISE),
        )

    @property
    def variant(self) -> str:
        """The model variant of its placement."""
        return self.placement.model_variant

    @property
    def pool(self) -> str:
        """The pool of its placement."""
        return self.placement.pool

    @property
    def sent_at(self) -> float:
        """Time at which a router decided on its pool, epoch seconds."""
        return self.released_at or self.profile.routed_at

    @property
    def is_direct(self) -> bool:
        """Return True if a client waits for the answer."""
        return self.placement.path == "direct"

    @property
    def urgency(self) -> int:
        """Return that of its call."""
        return urgency_of(self.profile, self.placement)


def _promised(headers: h.Headers, name: str) -> Envelope | None:
    value = h.find(headers, name)
    try:
        return None if value is None else h.decoded(Envelope, value)
    except BadRecordError:
        return None
