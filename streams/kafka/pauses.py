"""Pauses between the tries of what is about to pass, such as the move of a leader."""

import asyncio

GROWTH = 1.5


class Pauses:
    """Pauses, each longer than the last up to a limit.

    Most of what passes does so within some ms; what doesn't is asked for less often.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        """Set the first pause and the longest, in seconds."""
        self._next_s = first_s
        self._longest_s = longest_s

    async def pause(self) -> None:
        """Wait for the next one."""
        await asyncio.sleep(self._next_s)
        self._next_s = min(GROWTH * self._next_s, self._longest_s)
