"""The sizing of one pool beside two independent simulators, on the same requests.

How many H100 serve the 8b chats of a trace, 99 % of first tokens in time: by the backtest, which
judges the fleets of `shunter plan`, by `vllm-sr-sim` (PyPI) and by BLIS
(github.com/inference-sim/inference-sim, Go). Neither is a dependency: give an interpreter that has
the one, and the folder of the other's source with its program `blis`.

    python3 -m venv sr && sr/bin/pip install vllm-sr-sim
    git clone https://github.com/inference-sim/inference-sim blis && (cd blis && go build -o blis .)
    python -m benchmarks.plan_beside --sr-sim sr/bin/python --blis blis --rate 20
"""

import argparse
import csv
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from policies.backtest.fault_model import Reality
from policies.backtest.scores import percentile
from policies.backtest.workload import Arrival, compress
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting, plans
from streams.config.declarations import load_fleet, load_policy

MODEL, TASK = "llama-3.1-8b", "chat"
SLO_S, WANTED = 1.5, 0.99
SEQUENCES, CHUNK = 256, 2048
COUNTS = (1, 2, 3, 4, 6, 8)

FLEET = """
pools:
  h100:
    device: h100
    count: {count}
    region: eu-west
    serves:
      - {{model: llama-3.1-8b, variant: llama-3.1-8b-bf16, precision: bf16, max_batch: {most}}}
"""

SR_SIM = """
import json, sys
from fleet_sim.core.fleet import Fleet, FleetConfig, PoolConfig
from fleet_sim.core.request import Request
from fleet_sim.gpu_profiles.builder import ProfileBuilder, ServingConfig
from fleet_sim.hardware.catalog import H100_SXM
from fleet_sim.models import LLAMA_3_1_8B
told = json.load(sys.stdin)
serving = ServingConfig(tp=1, dtype_bytes=2.0, chunk=told["chunk"], max_slots=told["sequences"],
                        mean_ctx_tokens=told["context"])
gpu = ProfileBuilder().build(H100_SXM, LLAMA_3_1_8B, serving)
pool = PoolConfig("h100", gpu, told["count"], told["longest"], chunk_mode=told["chunk_mode"])
fleet = Fleet(FleetConfig([pool], router_type="RandomRouter"))
asked = [(at, Request(n, at, i, o)) for n, (at, i, o) in enumerate(told["requests"])]
done = fleet.run(asked).completed
print(json.dumps([[r.ttft, r.e2e_latency, r.l_out] for r in done if r.ttft is not None]))
"""

BLIS_COLUMNS = (
    *("request_id", "client_id", "tenant_id", "slo_class", "session_id", "round_index"),
    *("prefix_group", "prefix_length", "streaming", "input_tokens", "output_tokens"),
    *("text_tokens", "image_tokens", "audio_tokens", "video_tokens", "reason_ratio", "model"),
    *("deadline_us", "server_input_tokens", "arrival_time_us", "send_time_us"),
    *("first_chunk_time_us", "last_chunk_time_us", "num_chunks", "status", "error_message"),
    "finish_reason",
)


class Answered(NamedTuple):
    """What a simulator says of a request: seconds to its first token and to its end."""

    ttft_s: float
    finish_s: float
    output_tokens: int

    @property
    def tpot_s(self) -> float:
        """Seconds per token after the first."""
        return (self.finish_s - self.ttft_s) / max(1, self.output_tokens - 1)


Simulator = Callable[[Sequence[Arrival], int], list[Answered]]


def by_shunter(arrivals: Sequence[Arrival], count: int) -> list[Answered]:
    """Return what the backtest says, under the packaged policy."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fleet.yaml"
        file.write_text(FLEET.format(count=count, most=SEQUENCES))
        fleet = load_fleet(file)
    setting = Setting(arrivals, fleet, load_policy(None), Reality())
    outcomes = plans(setting, with_baselines=False)[0].run().run.outcomes
    return [
        Answered(o.ttft_s, o.finished_s - o.profile.created_at, o.output_tokens)
        for o in outcomes
        if o.ttft_s is not None and o.finished_s is not None
    ]


def by_sr_sim(
    python: str, chunk_mode: str, arrivals: Sequence[Arrival], count: int
) -> list[Answered]:
    """Return what `vllm-sr-sim` says, by its profile of an H100 and of the model.

    Prompts are computed in chunks: of each sequence its own (``independent``, its default), or of
    all together one an iteration (``shared``).
    """
    lengths = [a.input_tokens + a.output_tokens for a in arrivals]
    told = {
        "requests": [[a.arrival_s, a.input_tokens, a.output_tokens] for a in arrivals],
        "count": count,
        "chunk_mode": chunk_mode,
        "chunk": CHUNK,
        "sequences": SEQUENCES,
        "context": sum(lengths) // len(lengths),
        "longest": max(lengths),
    }
    run = subprocess.run(
        [python, "-c", SR_SIM], input=json.dumps(told), text=True, capture_output=True, check=True
    )
    return [Answered(*each) for each in json.loads(run.stdout)]


def by_blis(
    home: Path, latency_model: str, arrivals: Sequence[Arrival], count: int
) -> list[Answered]:
    """Return what BLIS says, by one of its latency models."""
    with tempfile.TemporaryDirectory() as folder:
        header, data, results = (Path(folder) / name for name in ("h.yaml", "d.csv", "r.json"))
        header.write_text(
            "trace_version: 2\ntime_unit: microseconds\nmode: generated\nwarm_up_requests: 0\n"
        )
        _write_blis(data, arrivals)
        command = [
            *("./blis", "replay", "--trace-header", str(header), "--trace-data", str(data)),
            *("--model", "meta-llama/llama-3.1-8b-instruct", "--hardware", "H100", "--tp", "1"),
            *("--latency-model", latency_model, "--num-instances", str(count)),
            *("--routing-policy", "least-loaded", "--max-num-seqs", str(SEQUENCES)),
            *("--max-num-batched-tokens", str(CHUNK), "--results-path", str(results)),
        ]
        subprocess.run(command, cwd=home, check=True, capture_output=True, text=True)
        found = json.loads(results.read_text())
    return [
        Answered(each["ttft_us"] / 1e6, each["e2e_us"] / 1e6, each["output_tokens"])
        for each in found
    ]


def _write_blis(file: Path, arrivals: Sequence[Arrival]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, BLIS_COLUMNS, restval="0")
        writer.writeheader()
        for number, each in enumerate(arrivals):
            texts = dict.fromkeys(
                ("client_id", "tenant_id", "session_id", "prefix_group", "error_message", "model"),
                "",
            )
            writer.writerow(
                texts
                | {
                    "request_id": number,
                    "slo_class": "standard",
                    "streaming": "true",
                    "input_tokens": each.input_tokens,
                    "text_tokens": each.input_tokens,
                    "output_tokens": each.output_tokens,
                    "arrival_time_us": round(each.arrival_s * 1e6),
                    "status": "ok",
                    "finish_reason": "stop",
                }
            )


def chats(trace: Path | None, rate: float) -> list[Arrival]:
    """Return the trace's chats of the model, without sessions, at a multiple of its rate."""
    found = [
        replace(each, session=None, prefix_tokens=0, row=number)
        for number, each in enumerate(
            a for a in read_trace(trace) if (a.model, a.task) == (MODEL, TASK)
        )
    ]
    return compress(found, rate)


def row(name: str, count: int, asked: int, found: Sequence[Answered]) -> str:
    """Return a row of the table; what was never answered counts as late."""
    first = sorted(1000 * each.ttft_s for each in found)
    steps = sorted(1000 * each.tpot_s for each in found)
    figures = (percentile(first, 0.5), percentile(first, 0.99), percentile(steps, 0.5))
    told = " | ".join("" if each is None else f"{each:,.0f}" for each in figures)
    return f"| {count} | {name} | {told} | {in_time(asked, found):.2%} |"


def in_time(asked: int, found: Sequence[Answered]) -> float:
    """Return the share of the requests whose first token came in time."""
    return sum(each.ttft_s <= SLO_S for each in found) / asked


def main() -> None:
    """Print a table of all counts, and the least that each simulator finds enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--sr-sim", help="an interpreter that has vllm-sr-sim")
    parser.add_argument("--blis", type=Path, help="the folder of BLIS")
    given = parser.parse_args()
    simulators: dict[str, Simulator] = {"Shunter": by_shunter}
    if given.sr_sim:
        for mode in ("independent", "shared"):
            simulators[f"vllm-sr-sim, {mode}"] = partial(by_sr_sim, given.sr_sim, mode)
    if given.blis:
        for model in ("trained-physics", "roofline"):
            simulators[f"BLIS, {model}"] = partial(by_blis, given.blis, model)
    arrivals = chats(given.trace, given.rate)
    per_s = len(arrivals) / (arrivals[-1].arrival_s - arrivals[0].arrival_s)
    print(f"{len(arrivals)} requests, {per_s:.1f} a second\n")
    print("| H100 | by | TTFT p50, ms | p99 | TPOT p50, ms | first token in 1.5 s |")
    print("| --: | --- | --: | --: | --: | --: |")
    enough: dict[str, int] = {}
    for count in COUNTS:
        for name, simulate in simulators.items():
            found = simulate(arrivals, count)
            print(row(name, count, len(arrivals), found), flush=True)
            if in_time(len(arrivals), found) >= WANTED:
                enough.setdefault(name, count)
    print("\nenough for 99 %: " + ", ".join(f"{n} {enough.get(n, 'none')}" for n in simulators))


if __name__ == "__main__":
    main()
