"""Two variants on an accelerator with little memory, what comes of its events, and any roofline."""

from dataclasses import replace

from hypothesis import strategies as st

from policies.hardware.accelerator import Accelerator, Completion, Event, VariantLimits
from policies.hardware.roofline import Roofline

LLAMA_8B = Roofline(
    weights_bytes=16.06e9,
    active_weights_bytes=16.06e9,
    active_parameters=8.03e9,
    kv_bytes_per_token=131072,
    layers=32,
    attention_width=4096,
    flops=989e12,
    bandwidth_bytes_per_s=3.35e12,
    memory_bytes=80e9,
    compute_efficiency=0.7,
    bandwidth_efficiency=0.6,
    step_overhead_s=1e-4,
)
SMALL = replace(
    LLAMA_8B,
    weights_bytes=3e9,
    active_weights_bytes=3e9,
    active_parameters=1.5e9,
    kv_bytes_per_token=28672,
)
# Memory for about 9,000 tokens of LLAMA_8B's cache beside SMALL: the queue is felt.
TIGHT_BYTES = (16.06e9 + 3e9 + 9000 * 131072) / 0.9
VARIANTS = {
    "llama": VariantLimits(replace(LLAMA_8B, memory_bytes=TIGHT_BYTES), max_batch=4),
    "small": VariantLimits(replace(SMALL, memory_bytes=TIGHT_BYTES), max_batch=3),
}


def drain(accelerator: Accelerator) -> list[Event]:
    events = []
    while (at := accelerator.next_event_at()) is not None:
        events += accelerator.advance(at)
    return events


def completions(events: list[Event]) -> dict[str, Completion]:
    return {event.id: event for event in events if isinstance(event, Completion)}


rooflines = st.builds(
    Roofline,
    weights_bytes=st.floats(1e9, 1e12),
    active_weights_bytes=st.floats(1e7, 1e9),
    active_parameters=st.floats(1e7, 1e11),
    kv_bytes_per_token=st.integers(0, 10**6),
    layers=st.integers(0, 130),
    attention_width=st.integers(0, 16384),
    flops=st.floats(1e11, 1e16),
    bandwidth_bytes_per_s=st.floats(1e10, 1e13),
    memory_bytes=st.floats(1e9, 1e12),
    compute_efficiency=st.floats(0.05, 1),
    bandwidth_efficiency=st.floats(0.05, 1),
    step_overhead_s=st.floats(0, 1e-2),
)
