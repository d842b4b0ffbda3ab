"""Services that Faust hosts in a process: they start and stop without a log line at level info."""

from collections.abc import Awaitable, Callable

from mode import Service


class QuietService(Service):  # type: ignore[misc]
    """A service that logs its start and stop at level debug."""

    mundane_level = "debug"


class Repeated(QuietService):
    """Repeats a step, with a pause after each."""

    def __init__(self, step: Callable[[], Awaitable[object]], pause_s: float) -> None:
        super().__init__()
        self._step = step
        self._pause_s = pause_s

    @Service.task  # type: ignore[untyped-decorator]
    async def _repeat(self) -> None:
        while not self.should_stop:
            await self._step()
            await self.sleep(self._pause_s)
