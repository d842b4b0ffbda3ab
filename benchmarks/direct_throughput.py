"""Direct requests on a server that takes 2 s each: worker throughput over the server's limit.

    python benchmarks/direct_throughput.py [--concurrent 1000] [--requests 10000]

Starts a Kafka, a router, a worker and a model server (four processes beside this one) and prints
the rate while every place at the server is taken, over the server's possible rate.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from topics import Settings
from topics.admin import provisioning
from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.settings import free_port

SERVICE_S = 2.0
PREFIX = "direct-throughput"
MODEL = "llama-3.1-8b"
NAMES = ("server", "router", "worker")
_PIECE = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\n'
    b"data: [DONE]\n\n"
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
_STREAM = _HEAD % (b"text/event-stream", len(_PIECE + _LAST)) + _PIECE + _LAST
_WHOLE = _HEAD % (b"application/json", 2) + b"{}"


async def serve(port: int) -> None:
    """Run a server that takes `SERVICE_S` for each request at any load."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"content-length: " not in head:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                await asyncio.sleep(SERVICE_S)
                writer.write(_STREAM if b'"stream":true' in body else _WHOLE)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def fleet(port: int, concurrent: int) -> dict[str, Any]:
    """Return a fleet of one pool, which may have this many requests at the server at once."""
    pool = {
        "device": "h200",
        "count": 1,
        "region": "here",
        "lanes": ["direct"],
        "serves": [{"model": MODEL, "variant": MODEL, "precision": "fp8", "max_batch": concurrent}],
        "backend": {"type": "openai", "base_url": f"http://127.0.0.1:{port}/v1"},
    }
    return {"pools": {"here": pool}}


async def measure(bootstrap_servers: str, requests: int) -> list[dict[str, Any]]:
    """Publish the requests and return their results."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5)
    consumer = AIOKafkaConsumer(
        f"{PREFIX}.results",
        bootstrap_servers=bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await producer.start()
    await consumer.start()
    messages = [{"role": "user", "content": "Which track does this wagon go to?"}]
    for n in range(requests):
        value = {
            "id": f"r-{n}",
            "body": {"model": MODEL, "messages": messages, "max_tokens": 4},
            "completion_window": "10m",
            "service_tier": "priority",
        }
        await producer.send(f"{PREFIX}.requests", orjson.dumps(value), key=f"r-{n}".encode())
    await producer.flush()
    results: list[dict[str, Any]] = []
    while len(results) < requests:
        for records in (await consumer.getmany(timeout_ms=500)).values():
            results += [orjson.loads(record.value) for record in records]
    await producer.stop()
    await consumer.stop()
    return results


def start(
    directory: Path, servers: str, in_flight: int, *arguments: str
) -> subprocess.Popen[bytes]:
    """Start a process of Shunter."""
    environment = {
        "SHUNTER_BOOTSTRAP_SERVERS": servers,
        "SHUNTER_TOPIC_PREFIX": PREFIX,
        "SHUNTER_FLEET": str(directory / "fleet.yaml"),
        "SHUNTER_IN_FLIGHT_MAX": str(in_flight),
        "SHUNTER_INSTANCE": arguments[0],
    }
    with (directory / f"{arguments[0]}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "shunter", *arguments],
            env=os.environ | environment,
            stderr=log,
        )


def cpu_s_of(process: subprocess.Popen[bytes]) -> float:
    """Return the processor time of a process, where Linux reports it."""
    with suppress(OSError):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float("nan")


def run(concurrent: int, requests: int) -> dict[str, Any]:
    """Run everything and return the measurements."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker() as broker:
        directory, servers = Path(name), broker.bootstrap_servers
        (directory / "fleet.yaml").write_text(yaml.safe_dump(fleet(port, concurrent)))
        settings = Settings(bootstrap_servers=servers, topic_prefix=PREFIX)
        asyncio.run(provisioning.apply(settings, ["here"]))
        processes = [subprocess.Popen([sys.executable, __file__, "--serve", str(port)])]
        try:
            processes += [
                start(directory, servers, 3 * concurrent, *arguments)
                for arguments in (("router",), ("worker", "here"))
            ]
            time.sleep(5)
            results = asyncio.run(measure(servers, requests))
            cpu_s = {name: cpu_s_of(p) for name, p in zip(NAMES, processes, strict=True)}
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(30)
    bad = [result for result in results if result["status"] != "completed"]
    if bad:
        raise SystemExit(f"{len(bad)} of {requests} were not completed: {bad[0]['error']}")
    started = sorted(result["timing"]["started_at"] for result in results)
    seconds = max(result["timing"]["finished_at"] for result in results) - started[0]
    limit = concurrent / SERVICE_S
    # From when every place at the server is taken until the last request has one.
    full_s = started[-1] - started[concurrent - 1]
    full_per_s = (requests - concurrent) / full_s
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.python_version()}",
        "concurrent": concurrent,
        "requests": requests,
        "server_limit_per_s": limit,
        "seconds_in_all": round(seconds, 2),
        "seconds_to_fill": round(started[concurrent - 1] - started[0], 2),
        "per_s_while_full": round(full_per_s, 1),
        "of_limit_while_full": round(full_per_s / limit, 3),
        "cpu_s": cpu_s,
        "load_of_machine": os.getloadavg()[0],
    }


def main() -> None:
    """Serve, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrent", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
    else:
        print(json.dumps(run(arguments.concurrent, arguments.requests), indent=1))


if __name__ == "__main__":
    main()
