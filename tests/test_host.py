"""What a process of Shunter sets for itself."""

import os
import subprocess
import sys

import pytest

# Blocks that together are more than glibc keeps by itself, as those of a poll of large requests.
PROGRAM = """
import resource
from streams.host import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [b"x" * 4_000_000 for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{setting}
faults()
print(faults())
"""


def faults(setting: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setting=setting)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_memory_that_was_freed_is_not_taken_page_by_page_again() -> None:
    assert faults("keep_freed_memory()") < 0.01 * faults("")


LOOP = """
import asyncio, os, signal, sys
{before}
from mode import Service
from streams.host import run_app
from topics import Settings

class Tells(Service):
    async def on_start(self):
        print(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        os.kill(os.getpid(), signal.SIGTERM)

run_app("tells", Settings(log_level="error"), [Tells()])
"""


@pytest.mark.parametrize(
    ("before", "asked", "loop"),
    [
        ("import uvloop", {}, "uvloop"),
        ("sys.modules['uvloop'] = None", {}, "asyncio"),
        ("import uvloop", {"FAUST_LOOP": "aio"}, "asyncio"),
    ],
    ids=["installed", "not installed", "told otherwise"],
)
def test_a_process_runs_on_uvloop_where_it_is_installed(
    before: str, asked: dict[str, str], loop: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FAUST_LOOP"}
    ran = subprocess.run(
        [sys.executable, "-c", LOOP.format(before=before)],
        env=environment | asked,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout.split()) == (0, [loop]), ran.stderr
