"""Providers as spans and metrics name them: declared, else by the host of the server's URL."""

import pytest

from policies import compile_options, parse_fleet

FLEET = """
devices: {gpu: {kind: premium_gpu, memory_gb: 80, memory_bandwidth_tb_s: 2, tflops: {bf16: 300},
                usd_per_hour: 2, source: test}}
models: {m: {parameters_b: 1, layers: 10, query_heads: 8, kv_heads: 8, head_dim: 64,
             hidden_size: 512, context_tokens: 4096, source: test}}
pools:
  pool: {device: gpu, count: 1, region: eu, backend: BACKEND,
         serves: [{model: m, variant: m-bf16, precision: bf16, max_batch: 8}]}
"""


def provider(backend: str) -> str:
    options = compile_options(parse_fleet(FLEET.replace("BACKEND", backend), "fleet.yaml"))
    return options.by_pool["pool"][0].provider


def at(host: str, **fields: str) -> str:
    more = "".join(f", {name}: {value}" for name, value in fields.items())
    return f'{{type: openai, base_url: "https://{host}/v1"{more}}}'


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        (at("api.openai.com"), "openai"),
        (at("us.openai.azure.com"), "azure.ai.openai"),
        (at("api.groq.com"), "groq"),
        (at("api.mistral.ai"), "mistral_ai"),
        (at("api.x.ai"), "x_ai"),
        (at("notx.ai"), "openai"),
        (at("vllm.models.svc:8000"), "openai"),
        (at("vllm.models.svc:8000", provider="vllm"), "vllm"),
        (at("api.groq.com", provider="own"), "own"),
        ("{type: simulated}", "shunter"),
        ("{type: cpu}", "shunter"),
    ],
)
def test_a_pool_has_a_provider(backend: str, name: str) -> None:
    assert provider(backend) == name


def test_a_fleet_without_providers_has_the_version_that_it_had() -> None:
    with_null = at("api.groq.com", provider="null")
    versions = {
        parse_fleet(FLEET.replace("BACKEND", each), "fleet.yaml").version
        for each in (with_null, at("api.groq.com"))
    }
    assert len(versions) == 1
