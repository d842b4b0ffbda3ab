"""The cost of a span by our encoder and by the SDK's: microseconds of processor time for each.

    PYTHONPATH=. python benchmarks/span_encoding.py

A span of twelve attributes, without events and with ten of six attributes each, as a decision on
ten candidates has. Both encode each attribute anew: that ours keeps repeated ones is left out.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from streams.tracing import otlp_encoding as otlp

SPANS, ROUNDS = 300, 9
ATTRIBUTES = {f"shunter.attribute_{n}": ("premium-eu" if n % 2 else n * 1.5) for n in range(12)}
CANDIDATE = {
    "shunter.pool": "premium-eu",
    "shunter.variant": "llama-3.1-8b-fp8",
    "shunter.path": "hold",
    "shunter.cost_usd": 0.0001,
    "shunter.finish_s": 1.5,
    "shunter.chance": 0.99,
}
RESOURCE, SCOPE = Resource({"service.name": "router"}), InstrumentationScope("shunter")


def by_sdk(events: int) -> bytes:
    """Return the request that the SDK's exporter sends."""
    spans = [
        ReadableSpan(
            name="route",
            context=SpanContext(n + 1, n + 2, is_remote=False, trace_flags=TraceFlags(1)),
            resource=RESOURCE,
            attributes=ATTRIBUTES,
            events=[Event("candidate", CANDIDATE, 1) for _ in range(events)],
            kind=SpanKind.INTERNAL,
            start_time=1,
            end_time=2,
            instrumentation_scope=SCOPE,
        )
        for n in range(SPANS)
    ]
    sent: bytes = encode_spans(spans).SerializeToString()
    return sent


def by_us(events: int) -> bytes:
    """Return the request that a process of Shunter sends."""
    spans = []
    for n in range(SPANS):
        each = [otlp.attributes_of(otlp.OF_EVENT, CANDIDATE) for _ in range(events)]
        attributes = otlp.attributes_of(otlp.OF_SPAN, ATTRIBUTES)
        made = otlp.events("candidate", 1.0, each)
        spans.append(otlp.span(n + 1, n + 2, 0, "route", 0, (1.0, 2.0), attributes, made))
    return otlp.request(RESOURCE.attributes, spans)


def us_of(encode: Callable[[int], bytes], events: int) -> float:
    """Return the processor time of a span, in microseconds."""
    began = time.process_time()
    encode(events)
    return (time.process_time() - began) / SPANS * 1e6


def main() -> None:
    """Measure both by turns, and print the best of each."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| events | ours, µs | the SDK's, µs | ratio |\n| --: | --: | --: | --: |")
    for events in (0, 10):
        rounds = [(us_of(by_us, events), us_of(by_sdk, events)) for _ in range(ROUNDS)]
        ours, theirs = (min(times) for times in zip(*rounds, strict=True))
        print(f"| {events} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |")


if __name__ == "__main__":
    main()
