"""What the overload runs share: streams of like requests, and what came of each of them."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from system import System


@dataclass
class Stream:
    """Requests alike but for their ids, at a steady rate."""

    name: str
    per_second: float
    fields: dict[str, Any]
    output_tokens: int = 64
    published_at: dict[str, float] = field(default_factory=dict)

    async def publish(self, system: System, seconds: float) -> None:
        """Publish for so long."""
        began, first = time.monotonic(), len(self.published_at)
        body = {
            "model": "llama-3.1-8b",
            "max_tokens": self.output_tokens,
            "messages": [{"role": "user", "content": "Which track? " * 10}],
        }
        while (elapsed_s := time.monotonic() - began) < seconds:
            for number in range(len(self.published_at), first + int(elapsed_s * self.per_second)):
                request_id = f"{self.name}-{number}"
                value = orjson.dumps({"id": request_id, "body": body, **self.fields})
                self.published_at[request_id] = time.time()
                await system.producer.send(
                    system.catalogue.requests, value, key=request_id.encode()
                )
            await asyncio.sleep(0.005)

    def results(self, system: System, since: float = 0.0) -> list[dict[str, Any]]:
        """Return the results of what was published since then."""
        names = (name for name, at in self.published_at.items() if at >= since)
        return [system.result(name) for name in names if name in system.results]

    def latencies_s(self, system: System, since: float = 0.0) -> list[float]:
        """Return the times from publishing to the first token of what was completed."""
        return [
            result["timing"]["first_token_at"] - self.published_at[result["id"]]
            for result in self.results(system, since)
            if result["status"] == "completed"
        ]

    def ends(self, system: System) -> Counter[str]:
        """Return how many ended how: the status, and the reason where it isn't completed."""
        return Counter(
            result["status"] + (f" ({error['code']})" if (error := result.get("error")) else "")
            for result in self.results(system)
        )


async def wait_for_all(system: System, streams: Iterable[Stream], timeout_s: float) -> None:
    """Wait for the result of everything that was published."""
    wanted = [name for stream in streams for name in stream.published_at]
    await system.wait_for_results(wanted, timeout_s)


async def read_on(system: System) -> None:
    """Read results as they come, until cancelled."""
    while True:
        await system.read()


def quantiles(latencies_s: list[float]) -> tuple[float, float]:
    """Return median and 99th percentile."""
    if len(latencies_s) < 2:
        return (float("nan"), float("nan"))
    return statistics.median(latencies_s), statistics.quantiles(latencies_s, n=100)[98]
