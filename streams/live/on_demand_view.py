"""A live view that follows the topics only while somebody looks at it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from policies import Options, Policy
from streams.engine.clock import Clock
from streams.kafka.broker_loss import silent_s
from streams.live.follower import LiveFollower
from streams.live.rows import snapshot_of
from streams.live.snapshot import Snapshot
from streams.live.view import LiveView
from streams.service import QuietService
from topics import Settings

# A minute after the last look the topics are no longer read.
UNWATCHED_S = 60.0
STEP_S = 0.5

logger = logging.getLogger(__name__)


class OnDemandView(QuietService):
    """Follows the topics from the first look, and stops when nobody has looked for a while.

    It shares the process with the data plane and reads its evidence a second time, and so costs
    nothing while nobody looks. A failure here ends the view and nothing else.
    """

    def __init__(self, settings: Settings, clock: Clock, new_view: Callable[[], LiveView]) -> None:
        super().__init__()
        self._settings = settings
        self._clock = clock
        self._new_view = new_view
        self._looked_at = 0.0
        self._following: asyncio.Task[None] | None = None
        self._view = new_view()
        self._follower: LiveFollower | None = None

    def change(self, options: Options, policy: Policy) -> None:
        """Use another fleet and policy from now on."""
        self._view.change(options, policy)

    def look(self) -> Snapshot:
        """Return the current view; if it has just begun, it is not up to date."""
        now = self._looked_at = self._clock.now()
        if self._following is None or self._following.done():
            self._view = self._new_view()
            self._follower = LiveFollower(self._settings, self._view, self._clock)
            self._following = asyncio.create_task(self._follow(self._follower))
        is_current = self._follower is not None and self._follower.is_current
        return snapshot_of(self._view, now, is_current=is_current, unanswered_s=silent_s())

    async def _follow(self, follower: LiveFollower) -> None:
        try:
            await follower.start()
            try:
                while self._clock.now() - self._looked_at < UNWATCHED_S:
                    await follower.step(STEP_S)
            finally:
                await follower.stop()
        except Exception as error:  # noqa: BLE001  the process routes on, whatever this is
            # The next look starts anew.
            logger.warning("the live view can't be followed: %r", error)

    async def on_stop(self) -> None:
        """Stop following."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
