"""Calls for a model server, and the backend that makes them."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from stream_cases import Yard, make_policy, make_profile
from worker_cases import POOL

from policies import Option, compile_options, parse_fleet
from policies.config.fleet import OpenAIBackendConfig as Declared
from streams.engine.clock import SystemClock
from topics import InferenceRequest, Placement, PoolStatus, ServerLoad, decode, encode
from workers.backends.base import Call
from workers.backends.openai.backend import OpenAIBackend

FLEET = """
devices:
  box: {kind: cpu, memory_gb: 8, memory_bandwidth_tb_s: 0.05, tflops: {bf16: 1}, usd_per_hour: 1.0}
models:
  small:
    parameters_b: 0.3
    layers: 18
    kv_heads: 1
    head_dim: 256
    context_tokens: 4096
    operations: [chat, completions, embeddings, moderations]
pools:
  here:
    device: box
    count: 1
    region: home
    serves: [{model: small, variant: small-bf16, precision: bf16, max_batch: 8}]
"""
OPTIONS = compile_options(parse_fleet(FLEET, "fleet of the tests")).by_pool["here"]
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "moderations": "/v1/moderations",
}
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "count"}]},
    "completions": {"prompt": "count"},
    "embeddings": {"input": "count"},
    "moderations": {"input": "count"},
}


def call(operation: str = "chat", tell: Any = None, **body: Any) -> Call:
    """Return a call of one operation."""
    body = {"model": "small"} | BODIES[operation] | body
    request = InferenceRequest(id="r", url=PATHS[operation], model="small", body=body)
    profile = make_profile(make_policy(), id="r", url=PATHS[operation], body=body)
    assert profile.operation == operation
    placement = Placement("here", "box", "small-bf16", "bf16", "home", "direct")
    return Call(request, profile, placement, tell)


@contextlib.asynccontextmanager
async def backend_at(
    base_url: str, options: Sequence[Option] = OPTIONS, **declared: Any
) -> AsyncIterator[OpenAIBackend]:
    """Give a backend for the server there."""
    fields = {"type": "openai", "base_url": base_url, "first_token_s_max": 5.0} | declared
    backend = OpenAIBackend(Declared(**fields), options, SystemClock())
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def can_be_told(load: ServerLoad | None) -> None:
    """See that a heartbeat with this load is written, and read by a router."""
    status = PoolStatus("p", "p-0", 0.0, "up", 1.0, "d", "r", 1, 0, 0, 0.0, server=load)
    assert decode(PoolStatus, encode(status)) == status


def of_yard(yard: Yard, base_url: str, **declared: Any) -> Any:
    return backend_at(base_url, options=yard.options.by_pool[POOL], **declared)
