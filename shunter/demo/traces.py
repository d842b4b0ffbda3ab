"""The demo's trace backend: a Jaeger on this machine, found or started."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shunter.console import UserError
from shunter.demo.system import end_processes, log_tail

# Jaeger's default addresses.
ENDPOINT = "http://127.0.0.1:4317"
CONNECTED_S_MAX = 2.0
START_S_MAX = 20.0
STOP_S_MAX = 5.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Jaeger:
    """A Jaeger: its OTLP endpoint, and its page."""

    endpoint: str
    page: str

    def variables(self) -> dict[str, str]:
        """Return the variables that make a process send its traces there without delay."""
        named = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "500"}
        return named | {"OTEL_TRACES_EXPORTER": "otlp"}

    def address(self, trace_id: str) -> str:
        """Return the address of a trace's page."""
        return f"{self.page.rstrip('/')}/trace/{trace_id}"

    def missing(self) -> str | None:
        """Return which of the two addresses does not listen."""
        return next((url for url in (self.endpoint, self.page) if not _listens(url)), None)


@contextlib.contextmanager
def jaeger(page: str, program: Path | None, log: Path) -> Iterator[Jaeger]:
    """Provide the Jaeger at the variables' address, or start the program.

    Args:
        page: its page.
        program: a Jaeger to run until the end; None uses one that is there.
        log: the file for the program's output.

    Raises:
        UserError: nothing listens there.
    """
    found = Jaeger(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ENDPOINT, page)
    if program is None:
        if missing := found.missing():
            raise UserError(
                f"no Jaeger listens at {missing}: start one, name another by"
                " OTEL_EXPORTER_OTLP_ENDPOINT and SHUNTER_JAEGER_URL, or let the demo start one:"
                " --jaeger-program FILE"
            )
        yield found
        return
    if found.missing() is None:
        raise UserError(f"a Jaeger runs at {page} already: use it with --jaeger")
    with _run(program, found, log):
        yield found


@contextlib.contextmanager
def _run(program: Path, wanted: Jaeger, log: Path) -> Iterator[None]:
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - the user names it
                [program], stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:
        raise UserError(f"--jaeger-program {program}: {error.strerror}") from error
    try:
        end = time.monotonic() + START_S_MAX
        while missing := wanted.missing():
            if process.poll() is not None or time.monotonic() > end:
                told = log_tail(log)
                raise UserError(f"{program}: nothing at {missing}; its log ends with:\n{told}")
            time.sleep(POLL_S)
        yield
    finally:
        end_processes([process], STOP_S_MAX)


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    place = (parts.hostname or "127.0.0.1", parts.port or 80)
    try:
        with socket.create_connection(place, CONNECTED_S_MAX):
            return True
    except OSError:
        return False
