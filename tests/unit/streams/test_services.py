"""Settings that a process of Shunter makes for itself."""

import logging
import subprocess
import sys

import pytest

from streams.service import Repeated

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
