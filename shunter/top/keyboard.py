"""Keys, read one at a time from a terminal whose settings are restored."""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator

READ_BYTES = 64


@contextlib.contextmanager
def keyboard() -> Iterator["asyncio.Queue[str]"]:
    """Provide a queue of the keys pressed, without echo and without waiting for Enter.

    It stays empty if standard input is no terminal.
    """
    keys: asyncio.Queue[str] = asyncio.Queue()
    if not sys.stdin.isatty():
        yield keys
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()
    # Ctrl-C stays a signal, so that it ends hanging code, too.
    tty.setcbreak(terminal)
    loop.add_reader(terminal, _read, terminal, keys)
    try:
        yield keys
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read(terminal: int, keys: "asyncio.Queue[str]") -> None:
    pressed = os.read(terminal, READ_BYTES)
    if not pressed:
        # The terminal is gone.
        keys.put_nowait("q")
    elif pressed.startswith(b"\x1b") and len(pressed) > 1:
        # An arrow or function key; none has a meaning here.
        return
    for key in pressed.decode("utf-8", "ignore"):
        keys.put_nowait(key)
