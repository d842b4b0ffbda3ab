"""Settings that a process of Shunter makes for itself."""

import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from streams.hosting import readiness, services
from streams.service import Repeated
from topics import Settings

# Blocks that together are more than glibc keeps by itself, as those of a poll of large requests.
PROGRAM = """
import resource
from streams.hosting.services import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [b"x" * 4_000_000 for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for setting in (lambda: None, keep_freed_memory):
    setting()
    faults()
    print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_memory_that_was_freed_is_not_taken_page_by_page_again() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    without, kept = map(int, ran.stdout.split())
    assert kept < 0.01 * without


CRASHING = """
import asyncio, itertools, os, tempfile
from mode import Service
from streams.hosting.services import run_app
from topics import Settings

class FailsLater(Service):
    @Service.task
    async def _run(self):
        await asyncio.sleep(0.2)
        raise RuntimeError("no more")

class FailsToStart(Service):
    async def on_start(self):
        raise RuntimeError("no more")

class HangsWhenStopped(Service):
    async def on_stop(self):
        await asyncio.sleep(60)

class GoesOn(Service):
    @Service.task
    async def _run(self):
        await asyncio.sleep(60)

# The imports take longer than all that comes after.
children = {}
for hangs, fails in itertools.product((HangsWhenStopped, GoesOn), (FailsLater, FailsToStart)):
    told = tempfile.TemporaryFile()
    if (child := os.fork()) == 0:
        os.dup2(told.fileno(), 2)
        run_app("test", Settings(web_port=0), [hangs(), fails()])
        os._exit(0)
    children[child] = (f"{hangs.__name__} {fails.__name__}", told)
for child, (name, told) in children.items():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told.seek(0)
    print(name, status, b"RuntimeError: no more" in told.read())
"""


def test_a_process_that_fails_ends_though_something_in_it_hangs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CRASHING], check=False, capture_output=True, text=True, timeout=50
    )
    hanging, failing = ("HangsWhenStopped", "GoesOn"), ("FailsLater", "FailsToStart")
    ends = [f"{hangs} {fails} 1 True" for hangs in hanging for fails in failing]
    assert ran.stdout.splitlines() == ends, ran.stderr


STOPPED = """
import asyncio, os, signal
from mode import Service
from streams.hosting.services import run_app
from topics import Settings

class IsSlowToEnd(Service):
    @Service.task
    async def _run(self):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(5)

class GoesOn(Service):
    async def on_start(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

class Fails(Service):
    async def on_start(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await self.wait_until_stopped()
        raise OSError("what it uses is closed")

run_app("test", Settings(web_port=0), [IsSlowToEnd(), %s()])
"""


@pytest.mark.parametrize("starting", ["GoesOn", "Fails"])
def test_a_process_that_is_told_to_stop_while_it_starts_has_not_failed(starting: str) -> None:
    """Else its supervisor tells somebody, or starts it again."""
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED % starting],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stderr


HANGING = """
import asyncio, itertools, os, signal, tempfile
from mode import Service
from streams.hosting import stop_limit
from streams.hosting.services import run_app
from topics import Settings

class HangsWhenStopped(Service):
    @Service.task
    async def _run(self):
        os.kill(os.getpid(), signal.SIGTERM)

    async def on_stop(self):
        await asyncio.sleep(60)

children = {}
for limit, silence, work_s_max in ((0.5, 0.0, 0.1), (60.0, 70.0, 60.0)):
    told = tempfile.TemporaryFile()
    if (child := os.fork()) == 0:
        os.dup2(told.fileno(), 2)
        stop_limit.STOP_S_MAX, stop_limit.SILENT_S_MAX = limit, 0.5
        stop_limit.silent_s = lambda: silence
        run_app("test", Settings(web_port=0), [HangsWhenStopped()], work_s_max=work_s_max)
    children[child] = told
for child, told in children.items():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told.seek(0)
    lines = [line for line in told.read().decode().splitlines() if "the process ends" in line]
    print(status, *lines)
"""


def test_a_process_that_was_told_to_stop_ends_though_kafka_or_a_part_of_it_hangs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HANGING], check=False, capture_output=True, text=True, timeout=50
    )
    by_limit, by_silence = ran.stdout.splitlines()
    assert by_limit.startswith("0 "), ran.stderr
    assert "its parts have not stopped in 1 s" in by_limit
    assert by_silence.startswith("0 "), ran.stderr
    assert "no Kafka broker answers" in by_silence


def test_a_port_that_is_taken_is_told_in_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "set_up_logging", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            services.run_app("test", Settings(web_port=port), [])
    assert ended.value.code == 1
    told = caplog.records[-1].getMessage()
    assert f"port {port} (SHUNTER_WEB_HOST, SHUNTER_WEB_PORT)" in told
    assert "in use" in told


async def test_a_follower_that_never_began_has_nothing_to_close() -> None:
    """As where another service of its group fails to start."""
    follower: Any = SimpleNamespace(topics=("t",))
    await services.FollowerService(follower).on_shutdown()


async def test_readiness_says_why_there_is_none_and_liveness_is_another_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages: dict[str, Callable[[Any, None], Awaitable[Any]]] = {}

    def page(path: str) -> Callable[[Any], None]:
        return lambda shown: pages.update({path: shown})

    def told(content: dict[str, str], status: int) -> tuple[int, str | None]:
        return status, content.get("reason")

    view = SimpleNamespace(json=told)
    part = SimpleNamespace(started=True, crashed=False)
    obstacle: str | None = None
    services._add_health(SimpleNamespace(page=page), [part], lambda: obstacle)  # type: ignore[arg-type, list-item]
    health, ready = pages["/healthz"], pages["/readyz"]
    assert await ready(view, None) == (200, None)
    monkeypatch.setattr(readiness, "silent_s", lambda: readiness.SILENT_S_MAX + 2)
    assert await ready(view, None) == (503, "no Kafka broker answers for 12 s")
    assert await health(view, None) == (200, None)
    monkeypatch.setattr(readiness, "silent_s", lambda: readiness.SILENT_S_MAX - 2)
    assert await ready(view, None) == (200, None)
    obstacle = "no room"
    assert await ready(view, None) == (503, "no room")
    part.crashed = True
    assert await ready(view, None) == (503, "a part of the process does not run")
    assert (await health(view, None))[0] == 503


async def test_what_is_repeated_goes_on_until_it_is_stopped_and_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    looked = 0

    async def look() -> None:
        nonlocal looked
        looked += 1
        if looked == 3:
            service.set_shutdown()
            await service.stop()

    service = Repeated(look, 0.001)
    await service.start()
    await service.wait_until_stopped()
    assert looked == 3
    assert not caplog.records
