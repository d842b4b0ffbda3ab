"""A real llama.cpp server with a small real model, as a process that can be killed."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from shunter.demo.llama_server import PACKAGED_NAME

MODEL = PACKAGED_NAME
CONTEXT_TOKENS = 1024


class LlamaServer:
    """The process. It keeps its port, so that it comes back where it was."""

    def __init__(self, log: Path, parallel: int, model: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = log
        self._parallel = parallel
        self._model = model
        self._sink: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, timeout_s: float = 60.0) -> None:
        """Start it and wait until it is healthy."""
        self._sink = self._log.open("ab")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "shunter.demo.llama_server"),
                *(str(self.port), str(self._parallel), str(CONTEXT_TOKENS), MODEL),
                *([] if self._model is None else [str(self._model)]),
            ],
            # It ends when this is closed.
            stdin=subprocess.PIPE,
            stdout=self._sink,
            stderr=self._sink,
        )
        end_at = time.monotonic() + timeout_s
        while time.monotonic() < end_at and self._process.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                if self.get("/health"):
                    return
            time.sleep(0.1)
        self.kill()
        raise AssertionError(f"no llama.cpp server: {self._log.read_text()[-2000:]}")

    def get(self, path: str) -> str:
        """Return a page of it."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=5) as page:
            text: str = page.read().decode()
            return text

    def counter(self, name: str) -> float:
        """Return one of its own counters."""
        lines = (line.split() for line in self.get("/metrics").splitlines())
        return next(float(words[1]) for words in lines if words[:1] == [name])

    def kill(self) -> None:
        """Kill it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None
