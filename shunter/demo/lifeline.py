"""The end of a process of the demo with the demo itself, however that ends.

The process holds a pipe from its parent. When the parent is gone, ``kill -9`` included, the pipe
closes. Linux's parent-death signal would also work, but exists only there and follows the thread.
"""

import os
import signal
import sys
import threading
import time

# A clean stop takes about 2 s; without its Kafka, which has gone too, it may never end.
END_S_MAX = 10.0


def end_with_the_demo() -> None:
    """Watch the pipe from now on, in a thread of its own."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    # Not sys.stdin, whose buffer would be locked when the process ends.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S_MAX)
    os.kill(os.getpid(), signal.SIGKILL)
