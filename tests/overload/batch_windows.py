"""What waiting saves a batch: the same lines with a window of a minute, and with one of a day.

python tests/overload/batch_windows.py --task summarization

The packaged fleet and policy, simulated at full speed: 400 lines of 800 tokens to a 70B model.
"""

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from gateway_cases import door
from large_batch import ENDED, followed, until_it_answers
from openai import AsyncOpenAI
from running_system import System
from stream import running, show

from streams.config.declarations import packaged

MODEL, LINES = "llama-3.1-70b", 400
# The shorter one first: what the pools learn of its lines is known to both.
WINDOWS = ("1m", "24h")
RATIO_MAX = 0.9
END_S_MAX = 400.0


def line(n: int, window: str, task: str | None) -> bytes:
    """Return a line of the input."""
    said = [{"role": "user", "content": f"{window} {n} " + "summarise this. " * 200}]
    asked = {"model": MODEL, "max_tokens": 256, "messages": said}
    told = {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    return orjson.dumps(told | ({} if task is None else {"shunter": {"task": task}})) + b"\n"


async def paid(client: AsyncOpenAI, window: str, task: str | None) -> dict[str, Any]:
    """Return what a batch came to with a window."""
    contents = b"".join(line(n, window, task) for n in range(LINES))
    file = await client.files.create(file=("in.jsonl", contents), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window
    )
    batch = await followed(client, batch, float("inf"))
    assert batch.status in ENDED
    output = await client.files.content(batch.output_file_id or "")
    told = [orjson.loads(each)["shunter"] for each in output.iter_lines()]
    return {
        "completed": len(told),
        "usd_per_line": sum(each["cost"]["usd"] for each in told) / len(told),
        "pools": Counter(f"{p['pool']}, {p['path']}" for p in (each["placement"] for each in told)),
    }


async def run(task: str | None) -> dict[str, Any]:
    """Return what the lines cost with each window, and the longest over the shortest."""
    fleet = yaml.safe_load(packaged("fleet.yaml"))
    async with running("batch-windows", fleet) as system, asyncio.timeout(END_S_MAX):
        return await _run(system, task)


async def _run(system: System, task: str | None) -> dict[str, Any]:
    files = {"SHUNTER_GATEWAY_FILES": str(system.directory / "files")}
    async with door(system, **files) as opened, opened.client() as client:
        await until_it_answers(client)
        found = {window: await paid(client, window, task) for window in WINDOWS}
    short, long = (found[window]["usd_per_line"] for window in WINDOWS)
    return {"windows": found, "ratio": long / short}


def beyond(found: dict[str, Any]) -> list[str]:
    """Return which target was missed."""
    if found["ratio"] <= RATIO_MAX:
        return []
    return [f"a day costs {found['ratio']:.2f} of a minute, {RATIO_MAX:g} at most"]


def main() -> None:
    """Run, print what was paid, and fail where waiting saves nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", help="the class of the lines; recognised where not given")
    show(run(parser.parse_args().task), beyond)


if __name__ == "__main__":
    main()
