"""The quality watch on real variants of one model: what it finds, how soon, and how often in error.

    python -m benchmarks.quality_watch --folder /tmp/variants [--pairs 150] [--live] [--json]

Needs the extras `llama` and `bench`. Three variants of Gemma 3 270M are served by llama.cpp: 8 bits
(the reference), 4 bits as published (Q4_K_M), and 4 bits from a second, careless conversion with
some scales of the wrong sign (`benchmarks/quality_variants.py`). Each is asked the same prompts,
greedily; answers are kept in the folder, so that a run that was stopped goes on.

Then 100 seeds draw from the measured pairs, as traffic would, and the test looks after each: at
most 200 samples of the broken variant, 2,000 of the sound one. With --live a Kafka, a router and
three workers run besides, requests go to both variants, and the time until the broken one is called
drifted is told.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from llama_server import LlamaServer
from running_system import System, eventually

from benchmarks.quality_prompts import Prompt, prompts
from policies.quality.comparison import answer_group, difference, excerpt
from policies.quality.sequential_test import ALPHA
from policies.quality.verdicts import begun, judge
from shunter.demo.llama_server import packaged_model
from shunter.logs.quality import read_known
from topics import Comparison
from topics.embedded_broker.broker import EmbeddedBroker

REFERENCE, SOUND, BROKEN = "q8", "q4", "broken"
SEEDS, BROKEN_SAMPLES, SOUND_SAMPLES = 100, 200, 2_000
# How answers are compared, of which prompts, and the mean difference that is allowed.
WATCHED = (("labels", "labels", 0.1), ("greedy", "greedy", 0.4), ("tokens", "greedy", 0.3))
MODEL = "gemma-3-270m"

Pair = tuple[float, int | None]
"""How two answers differ, and the group of the reference's."""


def files(folder: Path) -> dict[str, Path]:
    """Return the file of each variant; those that are missing are made by a process of its own."""
    made = {name: folder / f"gemma-3-270m-{name}.gguf" for name in (REFERENCE, BROKEN)}
    if not all(path.exists() for path in made.values()):
        program = [sys.executable, "-m", "benchmarks.quality_variants", str(folder)]
        subprocess.run(program, check=True, cwd=ROOT)
    return made | {SOUND: packaged_model("watch")}


def answers(folder: Path, name: str, model: Path, asked: list[Prompt]) -> list[dict[str, Any]]:
    """Return a variant's answers, those that are in the folder already among them."""
    kept = folder / f"answers-{name}.jsonl"
    found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    if len(found) >= len(asked):
        return found[: len(asked)]
    server = LlamaServer(folder / f"server-{name}.txt", 1, model)
    server.start()
    try:
        with kept.open("a") as file:
            for prompt in asked[len(found) :]:
                found.append(ask(server, prompt))
                print(json.dumps(found[-1]), file=file, flush=True)
    finally:
        server.kill()
    return found


def ask(server: LlamaServer, prompt: Prompt) -> dict[str, Any]:
    """Return the server's answer."""
    body = json.dumps(prompt.body() | {"model": MODEL}).encode()
    headers = {"content-type": "application/json"}
    # Its own server.
    url = f"{server.base_url}/completions"
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        told: dict[str, Any] = json.loads(answer.read())
    return {"choices": [{"text": told["choices"][0]["text"]}]}


def differences(
    compare: str,
    kind: str,
    asked: list[Prompt],
    ones: list[dict[str, Any]],
    others: list[dict[str, Any]],
) -> list[Pair]:
    """Return how the answers to prompts of a kind differ."""
    found: list[Pair] = []
    for prompt, one, other in zip(asked, ones, others, strict=True):
        first, second = excerpt(one), excerpt(other)
        if prompt.compare == kind and first is not None and second is not None:
            x = difference(compare, first, second)
            found += [] if x is None else [(x, answer_group(compare, kind, first))]
    return found


def found_after(
    pairs: list[Pair], watched: tuple[str, str, float], samples: int, seed: int
) -> int | None:
    """Return after how many drawn samples the variant is called drifted, None if it is not."""
    draw, (compare, kind, within) = random.Random(seed), watched
    first = Comparison("", "", 0.0, kind, "p", "v", REFERENCE, compare, within, None, 0.0)
    state = begun(first)
    for n in range(samples):
        x, group = draw.choice(pairs)
        state = judge(state, replace(first, difference=x, answer_group=group))
        if state.verdict == "drifted":
            return n + 1
    return None


def row(name: str, watched: tuple[str, str, float], pairs: list[Pair]) -> dict[str, Any]:
    """Return what 100 seeds come to."""
    compare, _, within = watched
    samples = BROKEN_SAMPLES if name == BROKEN else SOUND_SAMPLES
    ends = [found_after(pairs, watched, samples, seed) for seed in range(SEEDS)]
    called = sorted(each for each in ends if each is not None)
    return {
        "variant": name,
        "compare": compare,
        "pairs": len(pairs),
        "mean_difference": round(statistics.fmean(x for x, _ in pairs), 3),
        "in_groups": sorted(
            round(statistics.fmean(x for x, group in pairs if group == each), 3)
            for each in {group for _, group in pairs}
        ),
        "within": within,
        "samples": samples,
        "called_drifted": len(called),
        "of_seeds": SEEDS,
        "median_samples": statistics.median(called) if called else None,
        "most_samples": called[-1] if called else None,
    }


def fleet(servers: dict[str, LlamaServer]) -> dict[str, Any]:
    """Return a fleet with a pool for each variant."""
    device = {"kind": "cpu", "memory_gb": 4, "memory_bandwidth_tb_s": 0.02, "usd_per_hour": 0.05}
    model = {"parameters_b": 0.27, "layers": 18, "kv_heads": 1, "head_dim": 256}
    return {
        "devices": {"this-cpu": device | {"tflops": {"bf16": 0.1, "int8": 0.1}}},
        "models": {MODEL: model | {"context_tokens": 1024}},
        "pools": {
            name: {
                "device": "this-cpu",
                "count": 1,
                "region": "here",
                "serves": [
                    {
                        "model": MODEL,
                        "variant": f"{MODEL}-{name}",
                        "precision": "int8" if name == REFERENCE else "int4",
                        "max_batch": 1,
                    }
                ],
                "backend": {
                    "type": "openai",
                    "base_url": server.base_url,
                    "served_name": {f"{MODEL}-{name}": MODEL},
                },
            }
            for name, server in servers.items()
        },
    }


def policy(compare: str, within: float) -> dict[str, Any]:
    """Return a policy whose only class runs twice, each request of it."""
    watch = {
        "reference": f"{MODEL}-{REFERENCE}",
        "share": 1.0,
        "compare": compare,
        "within": within,
        "budget_usd_per_day": 1.0,
        "window_s": 0.0,
    }
    chat = {"latency_sensitive": False, "batchable": True, "output_tokens": 12, "watch": watch}
    return {"classes": {"chat": chat | {"deadline_s": 3600.0, "longest_wait_s": 600.0}}}


async def live(folder: Path, models: dict[str, Path], count: int) -> dict[str, Any]:
    """Return what the whole system says of the variants, after requests to each.

    Requests name the pool of the variant that is to answer them; the reference may serve all, so
    that they allow its pool too, at a price that no request pays by choice.
    """
    servers = {name: LlamaServer(folder / f"live-{name}.txt", 1, models[name]) for name in models}
    asked = [each for each in prompts(count) if each.compare == "greedy"]
    compare, _, within = WATCHED[2]
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as directory:
        try:
            for server in servers.values():
                server.start()
            declared = fleet(servers)
            declared["pools"][REFERENCE]["usd_per_hour"] = 5.0
            system = System(broker.bootstrap_servers, "watch", Path(directory), fleet=declared)
            async with system:
                text = yaml.safe_dump(policy(compare, within))
                (Path(directory) / "policy.yaml").write_text(text)
                system.start_all()
                # A reference that may not serve a request when it is decided on is not asked.
                ups = [await send(system, asked[0], name, [name]) for name in servers]
                await system.wait_for_results(ups, timeout_s=60)
                began = time.monotonic()
                await system.wait_for_results(await publish(system, asked), timeout_s=280)

                async def found() -> bool:
                    """A sound variant takes some 50 samples to be known as one."""
                    known = await read_known(system.settings)
                    states = known.variants.values()
                    return any(s.pool == BROKEN and s.verdict == "drifted" for s in states)

                await eventually(found, "the broken variant is called drifted", timeout_s=120)
                after_s = time.monotonic() - began
                known = await read_known(system.settings)
        finally:
            for server in servers.values():
                server.kill()
    return {
        "seconds": round(after_s),
        "variants": {
            state.pool: {
                "verdict": state.verdict,
                "samples": state.samples,
                "recent_difference": round(state.recent, 3),
            }
            for state in known.variants.values()
        },
    }


async def publish(system: System, asked: list[Prompt]) -> list[str]:
    """Publish each prompt for both variants, by turns, and return the ids."""
    return [
        await send(system, prompt, f"{name}-{n}", [name, REFERENCE])
        for n, prompt in enumerate(asked)
        for name in (SOUND, BROKEN)
    ]


async def send(system: System, prompt: Prompt, request_id: str, pools: list[str]) -> str:
    """Publish a prompt for any of these pools, and return its id."""
    await system.publish(
        {
            "id": request_id,
            "url": "/v1/completions",
            "task": "chat",
            "body": prompt.body() | {"model": MODEL},
            "constraints": {"pools": pools},
        }
    )
    return request_id


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=150, help="prompts of each kind")
    parser.add_argument("--live", type=int, default=0, metavar="N", help="with N requests of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    models = files(options.folder)
    all_prompts = prompts(options.pairs)
    # Both kinds by turns, so that a run that is stopped has some of each.
    halves = zip(all_prompts[: options.pairs], all_prompts[options.pairs :], strict=True)
    asked = [prompt for pair in halves for prompt in pair]
    told = {name: answers(options.folder, name, path, asked) for name, path in models.items()}
    rows = [
        row(name, watched, differences(*watched[:2], asked, told[REFERENCE], told[name]))
        for watched in WATCHED
        for name in (SOUND, BROKEN)
    ]
    report: dict[str, Any] = {"alpha": ALPHA, "rows": rows}
    if options.live:
        report["live"] = asyncio.run(live(options.folder, models, options.live))
    if options.json:
        print(json.dumps(report))
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("| " + " | ".join("---" for _ in rows[0]) + " |")
    for each in rows:
        print("| " + " | ".join(map(str, each.values())) + " |")
    if options.live:
        print(json.dumps(report["live"]))


if __name__ == "__main__":
    main()
