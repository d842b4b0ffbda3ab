"""Keys of `shunter top`, from a terminal that its process gives back and loses."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shunter.top.keyboard import END
from shunter.top.state import State

CHILD = """
import asyncio
from shunter.top.keyboard import Keyboard

async def main():
    with Keyboard(lambda: print("leave"), lambda: print("back")) as keyboard:
        print("ready")
        while True:
            print("key", repr(await keyboard.pressed.get()))

asyncio.run(main())
"""


class Typed:
    """A process with a keyboard, and its terminal."""

    def __init__(self, process: subprocess.Popen[bytes], ours: int, theirs: int) -> None:
        self.process, self.ours, self.theirs = process, ours, theirs
        assert process.stdout is not None
        self._told = process.stdout.fileno()
        self._rest = b""

    def is_silent(self, for_s: float) -> bool:
        """Return whether it tells nothing for so long."""
        return not (self._rest or select.select([self._told], [], [], for_s)[0])

    def line(self) -> str:
        """Return the next line that it tells."""
        while b"\n" not in self._rest:
            assert select.select([self._told], [], [], 60)[0], "it tells nothing"
            self._rest += os.read(self._told, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


@contextmanager
def typed() -> Iterator[Typed]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD], stdin=theirs, stdout=subprocess.PIPE
    )
    child = Typed(process, ours, theirs)
    try:
        yield child
    finally:
        process.kill()
        process.communicate()
        os.close(child.ours)
        os.close(child.theirs)


def test_keys_come_one_by_one_after_a_stop_too() -> None:
    """A shell gives the terminal back as it likes it: then no key came before Enter."""
    with typed() as child:
        assert child.line() == "ready"
        os.write(child.ours, b"x")
        assert child.line() == "key 'x'"
        child.process.send_signal(signal.SIGTSTP)
        assert child.line() == "leave"
        _, status = os.waitpid(child.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        settings = termios.tcgetattr(child.theirs)
        assert settings[3] & termios.ECHO
        assert settings[3] & termios.ICANON
        child.process.send_signal(signal.SIGCONT)
        assert child.line() == "back"
        os.write(child.ours, b"y")
        assert child.line() == "key 'y'"


def test_whoever_else_stopped_it_keys_come_as_before() -> None:
    with typed() as child:
        assert child.line() == "ready"
        child.process.send_signal(signal.SIGSTOP)
        os.waitpid(child.process.pid, os.WUNTRACED)
        settings = termios.tcgetattr(child.theirs)
        settings[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(child.theirs, termios.TCSANOW, settings)
        child.process.send_signal(signal.SIGCONT)
        assert child.line() == "back"
        os.write(child.ours, b"z")
        assert child.line() == "key 'z'"


def test_a_terminal_that_is_gone_is_told_once() -> None:
    """It was told as often as it was asked, for ever, and as a letter of what was being typed."""
    with typed() as child:
        assert child.line() == "ready"
        os.close(child.theirs)
        os.close(child.ours)
        child.ours, child.theirs = pty.openpty()
        assert child.line() == f"key {END!r}"
        assert child.is_silent(0.5)


@pytest.mark.parametrize("keys", ["", "/", "/abc", "?"])
def test_a_signal_ends_the_view_whatever_is_typed(keys: str) -> None:
    state = State()
    for key in keys:
        assert not state.press(key)
    assert state.press(END)
