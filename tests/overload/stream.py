"""Common parts of the overload runs: streams of like requests, and what came of each of them."""

import asyncio
import logging
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson
from running_system import System

from topics.embedded_broker.broker import EmbeddedBroker

T = TypeVar("T")


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

    def stages_s(self, system: System, since: float = 0.0) -> dict[str, tuple[float, float]]:
        """Return median and 99th percentile of each stage on the way to the first token.

        Stages are until a router decided, until the server began, and until its first token.
        """
        found: dict[str, list[float]] = {"router": [], "lane": [], "server": []}
        for result in self.results(system, since):
            if result["status"] == "completed":
                timing = result["timing"]
                at = [self.published_at[result["id"]]]
                at += [timing[name] for name in ("routed_at", "started_at", "first_token_at")]
                for stage, begins, ends in zip(found, at, at[1:], strict=False):
                    found[stage].append(ends - begins)
        return {stage: quantiles(took) for stage, took in found.items()}

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


@asynccontextmanager
async def running(
    name: str, fleet: dict[str, Any], policy_changes: dict[str, Any] | None = None
) -> AsyncIterator[System]:
    """A system of this fleet with a broker of its own, at the speed of its policy."""
    directory = Path(tempfile.mkdtemp(prefix=f"shunter-{name}-"))
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        async with System(
            broker.bootstrap_servers,
            name,
            directory,
            fleet=fleet,
            policy_speed=1.0,
            policy_changes=policy_changes or {},
        ) as system:
            system.start_all()
            await asyncio.sleep(5)
            yield system
            # What a slow pool has still to do is not waited for.
            for process in list(system.processes):
                system.kill(process)


@asynccontextmanager
async def read_meanwhile(system: System) -> AsyncIterator[None]:
    """Read results as they come, while something else is done."""
    reading = asyncio.create_task(read_on(system))
    try:
        yield
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def show(found: Coroutine[Any, Any, T], beyond: Callable[[T], list[str]]) -> None:
    """Run, print what came of it, and exit with an error where it is beyond a target."""
    # A client without a broker says so many times a second.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    shown = asyncio.run(found)
    print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
    if wrong := beyond(shown):
        raise SystemExit("; ".join(wrong))


async def read_on(system: System) -> None:
    """Read results as they come, until cancelled."""
    while True:
        await system.read()


def quantiles(latencies_s: list[float]) -> tuple[float, float]:
    """Return median and 99th percentile, which is never beyond the largest."""
    if len(latencies_s) < 2:
        return (float("nan"), float("nan"))
    return statistics.median(latencies_s), statistics.quantiles(
        latencies_s, n=100, method="inclusive"
    )[98]
