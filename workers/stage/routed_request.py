"""A request on a lane of a pool, parsed once for all that its worker does with it."""

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


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """What a record of a lane says: the client's request, and what Shunter knows of it.

    ``record`` has its trace context, so that whoever asks for that reads no header either. The
    profile tells the attempt. ``released_at`` is when the hold let the request go, epoch seconds;
    None if it was never held. ``batch_context`` is that of the batch's span.
    """

    record: Record
    request: InferenceRequest
    profile: Profile
    placement: Placement
    promised: Envelope | None
    batch: Batch | None
    released_at: float | None
    batch_context: Context | None

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return what a record says.

        All that can end it as a dead letter is found here, before it runs, and not when its answer
        is there. The value is parsed as the router did in its own process: backends run its body.

        Raises:
            BadRecordError: it can't be read, or value, profile, placement, batch or time of release
                are none. A promise or a trace context that is none counts as missing.
        """
        record.check_readable()
        headers = record.headers
        profile = h.read_profile(headers)
        placement = h.read(headers, h.PLACEMENT, Placement)
        batch = h.read_batch(headers)
        released_at = _released_at(headers)
        request = parse_request(
            record.value, bytes_max=INGEST_BYTES_MAX, default_id=h.cloud_event_id(headers)
        )
        return cls(
            record if record.context is not None else record._replace(context=Context.of(headers)),
            request,
            profile,
            placement,
            _promised(headers),
            batch,
            released_at,
            Context.of(headers, h.BATCH_TRACEPARENT),
        )

    @property
    def variant(self) -> str:
        """The model variant that it was placed on."""
        return self.placement.model_variant

    @property
    def pool(self) -> str:
        """The pool that it was placed in."""
        return self.placement.pool

    @property
    def is_direct(self) -> bool:
        """Tell whether somebody waits for the answer."""
        return self.placement.path == "direct"


def _released_at(headers: h.Headers) -> float | None:
    value = h.find(headers, h.RELEASED_AT)
    try:
        return None if value is None else float(value)
    except ValueError as error:
        message = f"header {h.RELEASED_AT}: {error}"
        raise BadRecordError("decode", "bad_header", message) from error


def _promised(headers: h.Headers) -> Envelope | None:
    try:
        return h.read(headers, h.PROMISED, Envelope)
    except BadRecordError:
        return None
