"""The traces of a demo go where it says they are."""

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from demo_cases import console, outcome, printed
from rich.console import Console

from shunter.console import UserError
from shunter.demo.check import Verdict
from shunter.demo.report import print_traces, traces
from shunter.demo.run import DemoOutcome
from shunter.demo.traces import Jaeger, jaeger

PAGE = "http://127.0.0.1:16686/"
JAEGER_OF_TESTS = """#!{python}
import socket, sys, time
sockets = [socket.create_server(("127.0.0.1", port)) for port in {ports}]
time.sleep(60)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def traced() -> DemoOutcome:
    found = outcome(Verdict(0, 0, 0, 0, 0))
    for n, (name, result) in enumerate(found.ledger.results.items()):
        found.ledger.results[name] = replace(result, trace_id=f"{n + 1:032x}")
        steps = found.ledger.evidence[name]
        leads = [replace(s, batch=s.batch and replace(s.batch, index=0)) for s in steps]
        found.ledger.evidence[name] = leads
    return replace(found, jaeger=Jaeger("http://127.0.0.1:4317", PAGE))


def test_a_traced_demo_ends_with_an_address_of_each_kind_that_can_be_opened() -> None:
    found = traced()
    on: Console = console(60)
    print_traces(on, found)
    addresses = traces(found)
    assert list(addresses) == ["One that was served at once", "One that waited for a batch"]
    last = [line.strip() for line in printed(on).splitlines()]
    for address in addresses.values():
        trace_id = address.removeprefix("http://127.0.0.1:16686/trace/")
        assert trace_id in {result.trace_id for result in found.ledger.results.values()}
        # On one line, though that is longer than the terminal is wide.
        assert len(address) > 60
        assert address in last
    assert not traces(replace(found, jaeger=None))


def test_without_a_jaeger_the_demo_says_so_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endpoint, page = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with (
        pytest.raises(UserError, match=f"no Jaeger listens at {endpoint}.*--jaeger-program"),
        jaeger(page, None, tmp_path / "log"),
    ):
        pass


def test_a_program_runs_as_long_as_the_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ports = free_ports(2)
    program = tmp_path / "jaeger"
    program.write_text(JAEGER_OF_TESTS.format(python=sys.executable, ports=ports))
    program.chmod(0o700)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{ports[0]}")
    page = f"http://127.0.0.1:{ports[1]}"
    with jaeger(page, program, tmp_path / "log") as found:
        assert found.missing() is None
        assert found.variables()["OTEL_EXPORTER_OTLP_ENDPOINT"] == found.endpoint
    assert found.missing() is not None


def test_a_program_that_is_none_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"--jaeger-program .*none: No such file"),
        jaeger(f"http://127.0.0.1:{free_ports(1)[0]}", tmp_path / "none", tmp_path / "log"),
    ):
        pass
