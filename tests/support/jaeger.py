"""A real Jaeger on free ports, where there is one on this machine."""

import contextlib
import functools
import lzma
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PACKED = ROOT.parent / "shared" / "bin" / "jaeger.xz"
START_S_MAX = 20.0


@dataclass(frozen=True)
class Jaeger:
    """Where a Jaeger listens: OTLP by gRPC and HTTP, and its page with the query API."""

    grpc: str
    http: str
    page: str

    def environment(self) -> dict[str, str]:
        """What sends a process's traces there."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.grpc, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def packed() -> Path | None:
    """The packed Jaeger beside the repository, or beside the one that this worktree belongs to."""
    tree = ROOT / ".git"
    home = Path(tree.read_text().split()[1]).parents[2] if tree.is_file() else ROOT
    found = (PACKED, home.parent / "shared" / "bin" / "jaeger.xz")
    return next((path for path in found if path.exists()), None)


@functools.cache
def binary() -> Path | None:
    """JAEGER_BIN, or the packed one unpacked once; None where neither is there."""
    named = os.environ.get("JAEGER_BIN")
    if named:
        return Path(named)
    source = packed()
    if source is None:
        return None
    stamp = source.stat()
    cached = Path(tempfile.gettempdir()) / f"shunter-jaeger-{os.getuid()}-{int(stamp.st_mtime)}"
    if not cached.exists():
        part = cached.with_suffix(f".{os.getpid()}")
        with lzma.open(source) as unpacked, part.open("wb") as target:
            shutil.copyfileobj(unpacked, target, 1 << 20)
        part.chmod(0o700)
        part.replace(cached)
    return cached


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def configuration(grpc: int, http: int, page: int, query: int) -> dict[str, object]:
    """OTLP in, memory, query API: nothing that has a port of its own."""

    def at(port: int) -> dict[str, str]:
        return {"endpoint": f"127.0.0.1:{port}"}

    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            "pipelines": {
                "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
            },
        },
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"}, "http": at(page), "grpc": at(query)
            },
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
        },
        "receivers": {"otlp": {"protocols": {"grpc": at(grpc), "http": at(http)}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }  # fmt: skip


@contextlib.contextmanager
def running(program: Path, directory: Path) -> Iterator[Jaeger]:
    """Run a Jaeger that keeps its traces in memory."""
    grpc, http, page, query = free_ports(4)
    config = directory / "jaeger.yaml"
    config.write_text(yaml.safe_dump(configuration(grpc, http, page, query)))
    with (directory / "jaeger.log").open("wb") as log:
        process = subprocess.Popen([program, "--config", config], stdout=log, stderr=log)
    found = Jaeger(*(f"http://127.0.0.1:{port}" for port in (grpc, http, page)))
    try:
        end = time.monotonic() + START_S_MAX
        while not answers(f"{found.page}/api/v3/services"):
            told = (directory / "jaeger.log").read_text()[-2000:]
            assert process.poll() is None, f"Jaeger ended: {told}"
            assert time.monotonic() < end, f"Jaeger does not answer: {told}"
            time.sleep(0.05)
        yield found
    finally:
        # All it has is in memory; asked politely it may take over 10 s on a busy machine.
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):  # noqa: S310 - our own address
            return True
    except OSError:
        return False
