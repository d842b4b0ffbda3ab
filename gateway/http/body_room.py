"""Room for the bodies of requests that Kafka has not taken yet, over all connections."""

import contextlib
from collections.abc import Iterator

from gateway.http.errors import bodies_overloaded


class BodyRoom:
    """The bytes of all bodies that are in memory; a single one may be of any size.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @contextlib.contextmanager
    def share(self) -> "Iterator[BodyShare]":
        """Provide the share of one body, which ends with the block at the latest."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            share.leave()


class BodyShare:
    """The part of the room that one body takes."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._taken = 0

    def check(self, size: int) -> None:
        """Check that so many bytes more have room.

        Raises:
            ApiError: they have none beside the other bodies (503).
        """
        room = self._room
        if room.taken > self._taken and room.taken + size > room.most:
            raise bodies_overloaded(room.most)

    def grow(self, size: int) -> None:
        """Take room for bytes that have come. Raises ApiError, as ``check``."""
        self.check(size)
        self._taken += size
        self._room.taken += size

    def leave(self) -> None:
        """Give all back: the body is in memory no more."""
        self._room.taken -= self._taken
        self._taken = 0
