"""A session of `shunter top`: follow the topics, draw, take keys."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live

from shunter.top.keyboard import Keyboard
from shunter.top.screen import screen
from shunter.top.state import State
from streams.engine.clock import Clock
from streams.kafka.broker_loss import silent_s
from streams.live import LiveFollower, LiveView, Snapshot, snapshot_of
from topics import Settings
from topics.admin.provisioning import partition_counts
from topics.credentials import masked

STEP_S = 0.25
WARNING_SHOWN_S = 10.0


class _LastWarning(logging.Handler):
    """Keeps the newest warning for the screen, which log lines would break."""

    def __init__(self) -> None:
        super().__init__()
        self._line, self._at = "", 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of a warning."""
        self._line = masked(record.getMessage()).partition("\n")[0]
        self._at = record.created

    def line(self, now: float) -> str:
        """Return the newest warning, unless it is too old."""
        return self._line if now - self._at < WARNING_SHOWN_S else ""


async def look_once(settings: Settings, view: LiveView, clock: Clock) -> Snapshot:
    """Read the existing records, and return the view of them.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing.
        KafkaError: Kafka can't be read.
    """
    await partition_counts(settings, view.topics)
    follower = LiveFollower(settings, view, clock)
    await follower.start()
    await follower.stop()
    return snapshot_of(view, clock.now())


async def watch(
    settings: Settings, view: LiveView, clock: Clock, console: Console, interval_s: float
) -> None:
    """Show the view on a terminal until a key or a signal ends it.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing.
        KafkaError: Kafka can't be read.
    """
    await partition_counts(settings, view.topics)
    warnings = _LastWarning()
    logging.getLogger().handlers = [warnings]
    where = f"{settings.topic_prefix} on {settings.bootstrap_servers}"
    state = State()
    async with _following(settings, view, clock) as (follower, following):
        live = Live(console=console, screen=True, auto_refresh=False)
        with Keyboard(live.stop, live.start) as keyboard, live:
            snapshot = snapshot_of(view, clock.now(), is_current=False)
            is_over = False
            while not is_over:
                if not state.is_paused:
                    snapshot = snapshot_of(
                        view,
                        clock.now(),
                        is_current=follower.is_current,
                        unanswered_s=silent_s(),
                    )
                width, height = console.size
                warning = warnings.line(clock.now())
                shown = screen(snapshot, state, width, height, where=where, warning=warning)
                live.update(shown, refresh=True)
                is_over = await _wait(keyboard.pressed, state, interval_s)
                if following.done():
                    following.result()


async def _wait(keys: "asyncio.Queue[str]", state: State, interval_s: float) -> bool:
    """Wait for a key, at most until the next drawing is due; return whether it ends the view."""
    try:
        async with asyncio.timeout(interval_s):
            return state.press(await keys.get())
    except TimeoutError:
        return False


@contextlib.asynccontextmanager
async def _following(
    settings: Settings, view: LiveView, clock: Clock
) -> "AsyncIterator[tuple[LiveFollower, asyncio.Task[None]]]":
    follower = LiveFollower(settings, view, clock)

    async def follow() -> None:
        await follower.start()
        try:
            while True:
                await follower.step(STEP_S)
        finally:
            await follower.stop()

    following = asyncio.create_task(follow())
    try:
        yield follower, following
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
