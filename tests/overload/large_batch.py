"""A batch as large as one may be, to its end: 50,000 lines, 200 MB, its gateway killed midway.

python tests/overload/large_batch.py

The pool is simulated and answers at once. Told are how long it took, what memory the gateways had,
and whether each line is once in the files and was published once.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import orjson

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from gateway_cases import SHAPE, Door, opened_door
from openai import AsyncOpenAI
from openai.types import Batch
from running_system import System
from stream import running, show

from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from topics.embedded_broker.settings import free_port

MODEL, POOL = "large-8b", "fast-eu"
FLEET: dict[str, Any] = {
    "models": {MODEL: SHAPE | {"context_tokens": 131072}},
    "pools": {
        POOL: {
            "device": "h200",
            "count": 8,
            "region": "eu-west",
            "serves": [
                {"model": MODEL, "variant": f"{MODEL}-fp8", "precision": "fp8", "max_batch": 512}
            ],
            "backend": {"type": "simulated", "time_scale": 1000},
        }
    },
}
LINE_BYTES = 4000
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
# Of the gateway's process, whatever the batch's texts have.
MEMORY_MB_MAX = 300
END_S_MAX = 3600.0


def line(n: int) -> bytes:
    """Return a line of the input: so many bytes with its end."""
    said = {"role": "user", "content": ""}
    asked = {"model": MODEL, "max_tokens": 4, "messages": [said]}
    told = {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions"}
    said["content"] = "w" * (LINE_BYTES - 1 - len(orjson.dumps(told | {"body": asked})))
    return orjson.dumps(told | {"body": asked}) + b"\n"


def most_mb(opened: Door) -> int:
    """Return the most memory that a gateway has taken by now."""
    status = Path(f"/proc/{opened.process.pid}/status").read_text()
    (told,) = [each.split()[1] for each in status.splitlines() if each.startswith("VmHWM:")]
    return int(told) // 1024


async def until_it_answers(client: AsyncOpenAI) -> None:
    """Wait until a gateway that starts takes requests."""
    while True:
        try:
            await client.models.list()
        except openai.APIError:
            await asyncio.sleep(0.3)
        else:
            return


async def followed(client: AsyncOpenAI, batch: Batch, count: float) -> Batch:
    """Return the batch once so many of its lines have ended, or it has."""
    while batch.status not in ENDED:
        counts = batch.request_counts
        if counts is not None and counts.completed + counts.failed >= count:
            break
        await asyncio.sleep(1.0)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def published(system: System) -> Counter[bytes | None]:
    """Count the records of each id on the ingest topic."""
    log, names = KafkaLog(system.settings), system.catalogue
    bounds = await log.bounds([Partition(names.requests, n) for n in range(names.partitions)])
    found: Counter[bytes | None] = Counter()
    starts, ends = ({p: each[at] for p, each in bounds.items()} for at in (0, 1))
    async for records in log.read(starts, ends):
        found.update(record.key for record in records)
    return found


async def run(lines: int) -> dict[str, Any]:
    """Run a batch of so many lines, kill its gateway in the middle, and read what came of it."""
    async with running("large-batch", FLEET) as system, asyncio.timeout(END_S_MAX):
        source = system.directory / "in.jsonl"
        with source.open("wb") as file:
            file.writelines(map(line, range(lines)))
        env = {"SHUNTER_GATEWAY_FILES": str(system.directory / "files")}
        first = opened_door(system, free_port(), **env)
        async with first.client() as client:
            await until_it_answers(client)
            with source.open("rb") as file:
                sent = await client.files.create(file=file, purpose="batch")
            began = time.monotonic()
            batch = await client.batches.create(
                input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            batch = await followed(client, batch, lines / 2)
        memory_mb = [most_mb(first)]
        first.kill()
        second = opened_door(system, free_port(), **env)
        async with second.client() as client:
            await until_it_answers(client)
            batch = await followed(client, batch, float("inf"))
            took_s, memory_mb = time.monotonic() - began, [*memory_mb, most_mb(second)]
            ended: Counter[str] = Counter()
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                content = await client.files.content(file_id)
                ended.update(orjson.loads(each)["custom_id"] for each in content.iter_lines())
        second.kill()
        ids = await published(system)
        return {
            "status": batch.status,
            "lines": lines,
            "bytes": sent.bytes,
            "completed": batch.request_counts.completed if batch.request_counts else 0,
            "lost": lines - len(ended),
            "twice_in_the_files": sum(count > 1 for count in ended.values()),
            "published_twice": sum(count > 1 for count in ids.values()),
            "took_s": round(took_s, 1),
            "memory_mb": memory_mb,
        }


def beyond(found: dict[str, Any]) -> list[str]:
    """Return what is not as it has to be."""
    wrong = [
        f"{name}: {found[name]}"
        for name in ("lost", "twice_in_the_files", "published_twice")
        if found[name]
    ]
    if (found["status"], found["completed"]) != ("completed", found["lines"]):
        wrong.append(f"{found['status']}, with {found['completed']} lines completed")
    if max(found["memory_mb"]) > MEMORY_MB_MAX:
        wrong.append(f"a gateway took {max(found['memory_mb'])} MB, {MEMORY_MB_MAX} at most")
    return wrong


def main() -> None:
    """Run, print what was measured, and fail where a line is lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    show(run(parser.parse_args().lines), beyond)


if __name__ == "__main__":
    main()
