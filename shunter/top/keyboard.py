"""Keys, read one at a time from a terminal whose settings are restored."""

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Self

READ_BYTES = 64
# What a signal, and a terminal that is gone, come as: it ends the view whatever is being typed.
END = "\x04"


class Keyboard:
    """A queue of the keys pressed, without echo and without waiting for Enter.

    It stays empty if standard input is no terminal. While the process is stopped, as by Ctrl-Z, the
    terminal is the shell's: as it was, and to be taken again when the process goes on.

    Args:
        leave: called before the process stops.
        come_back: called when it goes on.
    """

    def __init__(self, leave: Callable[[], object], come_back: Callable[[], object]) -> None:
        self.pressed: asyncio.Queue[str] = asyncio.Queue()
        self._leave, self._come_back = leave, come_back
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.pressed.put_nowait, END)
        if self._terminal is not None:
            self._before = termios.tcgetattr(self._terminal)
            # Ctrl-C stays a signal, so that it ends hanging code, too.
            tty.setcbreak(self._terminal)
            loop.add_reader(self._terminal, self._read, self._terminal)
            loop.add_signal_handler(signal.SIGTSTP, self._stop, self._terminal)
            loop.add_signal_handler(signal.SIGCONT, self._go_on, self._terminal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTERM)
        if self._terminal is not None:
            loop.remove_signal_handler(signal.SIGTSTP)
            loop.remove_signal_handler(signal.SIGCONT)
            loop.remove_reader(self._terminal)
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._before)

    def _read(self, terminal: int) -> None:
        try:
            pressed = os.read(terminal, READ_BYTES)
        except OSError:
            pressed = b""
        if not pressed:
            asyncio.get_running_loop().remove_reader(terminal)
            self.pressed.put_nowait(END)
        elif pressed.startswith(b"\x1b") and len(pressed) > 1:
            # An arrow or function key; none has a meaning here.
            return
        for key in pressed.decode("utf-8", "ignore"):
            self.pressed.put_nowait(key)

    def _stop(self, terminal: int) -> None:
        self._leave()
        termios.tcsetattr(terminal, termios.TCSADRAIN, self._before)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _go_on(self, terminal: int) -> None:
        # The shell has its own settings meanwhile, and leaves those.
        tty.setcbreak(terminal)
        self._come_back()
