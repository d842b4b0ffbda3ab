"""The demo's progress output, with a plain form for pipes and logs."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console

from shunter.demo.watch import Watch

LINE_EVERY_S = 3.0


class Show(Protocol):
    """Shows a demo's progress. Enter it first; ``update`` may be called any number of times."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; the last output stays."""
        ...

    def say(self, message: str) -> None:
        """Report one event."""
        ...

    def update(self, watch: Watch) -> None:
        """Show the current state."""
        ...


class Lines:
    """Prints a line on standard error every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def update(self, watch: Watch) -> None:
        """Print the progress, unless that was done a moment ago."""
        if time.monotonic() - self._told_at < LINE_EVERY_S:
            return
        self._told_at = time.monotonic()
        self.say(
            f"{watch.published}/{watch.total} published, {len(watch.finished)} results,"
            f" {watch.held} waiting for a batch; ${watch.cost_usd:.4f}, on premium GPUs"
            f" ${watch.cost_all_premium_usd:.4f}"
        )
