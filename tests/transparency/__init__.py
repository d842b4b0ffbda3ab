"""Programs of others around a public log: torchwood's witness and reader, x/mod's notes.

They are built of ``go/`` by the Go toolchain, which fetches what they need.
"""

import base64
import hashlib
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD_S_MAX = 300.0
READY_S_MAX = 30.0
LITEWITNESS = "filippo.io/torchwood/cmd/litewitness"


def missing() -> str | None:
    """Return why the programs can't be had on this machine, None where they can."""
    return None if shutil.which("go") else "no `go` to build torchwood with"


def build(directory: Path) -> Path:
    """Build the programs in a directory, and return it; Go keeps what it has compiled."""
    # What isn't optimised is built in a third of the time.
    flags = ["-buildvcs=false", "-gcflags=all=-N -l"]
    go = shutil.which("go") or "go"
    built = subprocess.run(
        [go, "build", *flags, "-o", f"{directory}/", ".", LITEWITNESS],
        cwd=HERE / "go",
        capture_output=True,
        text=True,
        timeout=BUILD_S_MAX,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


def told(programs: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program of ``go/main.go``."""
    command = [str(programs / "transparency"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@dataclass(frozen=True)
class LiteWitness:
    """A litewitness that runs, by the line of a policy."""

    name: str
    line: str


@contextmanager
def litewitness(
    programs: Path, directory: Path, name: str, origin: str, vkey: str
) -> Iterator[LiteWitness]:
    """Run a litewitness that knows one log. Its key is in an agent, as it wants it."""
    directory.mkdir()
    agent_socket = directory / "agent"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = subprocess.Popen(
        [programs / "transparency", "agent", agent_socket], stdout=subprocess.PIPE, text=True
    )
    witness = None
    try:
        assert agent.stdout is not None
        fingerprint = agent.stdout.readline().strip()
        address = f"127.0.0.1:{port}"
        options = {"name": name, "db": directory / "db", "ssh-agent": agent_socket}
        options |= {"key": fingerprint, "listen": address}
        with (directory / "log").open("wb") as log:
            witness = subprocess.Popen(
                [programs / "litewitness", *(f"-{key}={told}" for key, told in options.items())],
                stderr=log,
            )
        verifier = _ready(port, witness, directory / "log")
        _acquaint(directory / "db", origin, vkey)
        yield LiteWitness(name, f"witness {name} {verifier} http://{address}\n")
    finally:
        for process in (witness, agent):
            if process is not None:
                process.kill()
                process.wait()
        if agent.stdout is not None:
            agent.stdout.close()


def _ready(port: int, witness: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the witness's vkey, once it listens."""
    until = time.monotonic() + READY_S_MAX
    while time.monotonic() < until:
        assert witness.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
            continue
        (line,) = (line for line in log.read_text().splitlines() if "vkey=" in line)
        return line.partition("vkey=")[2].strip().strip('"')
    raise AssertionError(log.read_text())


def _acquaint(database: Path, origin: str, vkey: str) -> None:
    """Tell a witness of a log, as `witnessctl` does, which needs more than Go's proxy has."""
    empty = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    with sqlite3.connect(database, timeout=10) as known:
        known.execute("INSERT INTO log VALUES (?, 0, ?)", (origin, empty))
        known.execute("INSERT INTO key VALUES (?, ?)", (origin, vkey))
    known.close()
