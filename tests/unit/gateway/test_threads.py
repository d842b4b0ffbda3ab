"""What a thread opens is closed, whenever whoever asked for it is cancelled."""

import asyncio
import threading

import pytest

from gateway.files.threads import THREADS, in_thread, opened_in_thread


class Opened:
    """What is open until it is closed, and takes as long to open as it is told."""

    def __init__(self) -> None:
        self.asked, self.go_on, self.is_closed = threading.Event(), threading.Event(), False

    def open(self) -> "Opened":
        self.asked.set()
        assert self.go_on.wait(30)
        return self

    def close(self) -> None:
        self.is_closed = True


async def held(opened: Opened) -> None:
    async with opened_in_thread(opened.open):
        await asyncio.Event().wait()


async def test_who_is_cancelled_while_it_is_opened_closes_it() -> None:
    opened = Opened()
    task = asyncio.create_task(held(opened))
    await asyncio.to_thread(opened.asked.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    opened.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened.is_closed


async def test_it_is_closed_at_the_end_of_the_block() -> None:
    opened = Opened()
    opened.go_on.set()
    async with opened_in_thread(opened.open) as found:
        assert found is opened
        assert not opened.is_closed
    assert opened.is_closed


async def test_what_can_not_be_opened_is_told() -> None:
    def fail() -> Opened:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        async with opened_in_thread(fail):
            raise AssertionError("there is nothing to use")


async def test_a_store_that_does_not_answer_keeps_no_name_from_being_looked_up() -> None:
    """A gateway that can't look up Kafka's hosts serves no chat either."""
    go_on = threading.Event()
    calls = [asyncio.create_task(in_thread(go_on.wait, 30)) for _ in range(2 * THREADS)]
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().getaddrinfo("localhost", 9092)
        assert not any(call.done() for call in calls)
    finally:
        go_on.set()
        await asyncio.gather(*calls)
