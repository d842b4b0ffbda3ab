"""The earlier spans of an unsampled request that turns out to be worth a trace.

They are made from its headers. The rest, the candidates above all, is in the evidence.
"""

import contextlib

from opentelemetry.trace import SpanKind

from streams.engine.log import Record
from streams.engine.trace_context import Context
from streams.tracing import span_attributes as a
from streams.tracing.telemetry import Telemetry
from topics import BadRecordError, Catalogue, Placement
from topics.records import headers as h


def write_earlier(telemetry: Telemetry, catalogue: Catalogue, record: Record) -> int:
    """Write the spans of a request before its current record, and return the last one's id.

    Returns 0 if there were none, or none are known.
    """
    own = telemetry.entered(record).context
    if own is None or record.partition.topic == catalogue.requests:
        return 0
    profile = placement = None
    with contextlib.suppress(BadRecordError):
        profile = h.read_profile(record.headers)
        placement = h.read(record.headers, h.PLACEMENT, Placement)
    if profile is None:
        return 0
    asked = a.asked(profile.task, profile.tenant, profile.model)
    said = a.message(profile.id) + asked + a.SAMPLED_LATE
    context = Context(own.trace_id, 0, is_sampled=True)
    routed_at, released_at = profile.routed_at, _released_at(record)
    was_held = released_at is not None or record.partition.topic == catalogue.held
    decision = a.said({"shunter.decision": "held" if was_held else "placed"})
    routed = a.messaging(catalogue.requests, "process") + said + decision
    last = telemetry.write(
        f"process {catalogue.requests}",
        SpanKind.CONSUMER,
        context,
        0,
        (routed_at, routed_at),
        routed if placement is None else routed + a.place(placement),
    )
    if released_at is not None:
        held = said + a.measured("shunter.hold.seconds", a.seconds(released_at - routed_at))
        times = (routed_at, released_at)
        last = telemetry.write("hold", SpanKind.INTERNAL, context, last, times, held)
    return last


def _released_at(record: Record) -> float | None:
    try:
        return h.read_time(record.headers, h.RELEASED_AT)
    except BadRecordError:
        return None
