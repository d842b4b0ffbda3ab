"""The fleet of a demo on real models: llama.cpp beside the worker's own models, on one machine."""

import yaml

from shunter.demo.llama_server import ServedModel

TEXT_POOL, SMALL_POOL = "here-llama", "here-cpu"
EMBEDDING, MODERATION = "minilm-embedding", "minilm-moderation"
PARALLEL, CONTEXT_TOKENS = 2, 2048
# An hour of some cores of a rented machine; nothing here was billed.
USD_PER_HOUR = 0.05
# What a core of a current server does, about: only the first requests are placed by it, since
# workers learn how fast they are.
DEVICE = {
    "kind": "cpu",
    "memory_gb": 8,
    "memory_bandwidth_tb_s": 0.02,
    "tflops": {"bf16": 0.1, "int8": 0.2},
    "usd_per_hour": USD_PER_HOUR,
}
_ENCODER = {
    "parameters_b": 0.0227,
    "layers": 6,
    "query_heads": 12,
    "head_dim": 32,
    "kv_bytes_per_token": 0,
}
# By the bits of a weight, from which on.
_PRECISIONS = ((12.0, "bf16"), (6.5, "int8"), (0.0, "int4"))
_OWN = "these weights are what the fleet means by the model"


def real_fleet(served: ServedModel) -> str:
    """Return the fleet file of this machine, with a model as its server tells of it."""
    precision = next(name for bits, name in _PRECISIONS if served.bits >= bits)
    return yaml.safe_dump(
        {
            "devices": {"this-cpu": DEVICE},
            "models": {
                served.name: {
                    "parameters_b": served.parameters / 1e9,
                    "weights_gb": {precision: served.weights_bytes / 1e9},
                    # A server tells neither layers nor heads; the cache is small here.
                    "layers": 1,
                    "kv_bytes_per_token": 32768,
                    "context_tokens": CONTEXT_TOKENS,
                },
                EMBEDDING: _ENCODER | {"context_tokens": 256, "operations": ["embeddings"]},
                MODERATION: _ENCODER | {"context_tokens": 4096, "operations": ["moderations"]},
            },
            "pools": {
                TEXT_POOL: _pool(
                    [_variant(served.name, precision, PARALLEL)],
                    {
                        "type": "openai",
                        "provider": "llama.cpp",
                        "base_url": served.base_url,
                        "served_name": {f"{served.name}-{precision}": served.name},
                    },
                ),
                SMALL_POOL: _pool(
                    [_variant(EMBEDDING, "int8", 8), _variant(MODERATION, "int8", 8)],
                    {"type": "cpu", "threads": 1},
                ),
            },
        },
        sort_keys=False,
    )


def _pool(serves: list[dict[str, object]], backend: dict[str, object]) -> dict[str, object]:
    return {
        "device": "this-cpu",
        "count": 1,
        "region": "here",
        "serves": serves,
        "backend": backend,
    }


def _variant(model: str, precision: str, max_batch: int) -> dict[str, object]:
    return {
        "model": model,
        "variant": f"{model}-{precision}",
        "precision": precision,
        "max_batch": max_batch,
        "quality": 1,
        "quality_source": _OWN,
    }
