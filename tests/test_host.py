"""What a process of Shunter sets for itself."""

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
