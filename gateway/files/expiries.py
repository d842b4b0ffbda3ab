"""Objects that are to be deleted at a time: an index by the hour, so that no object is asked."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from topics import BadRecordError, decode, encode
from topics.objects import Objects

HOUR_S = 3600
_FOLDER = "expiring"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Due:
    """Objects that go at a time, in this order, unless there is one of the name ``unless``."""

    at: float
    paths: tuple[str, ...]
    unless: str | None = None


class Expiries:
    """The index, in the store itself; a gateway that dies leaves its entries to the others."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def note(self, at: float, paths: Sequence[str], unless: str | None = None) -> None:
        """Have objects deleted at a time, in epoch seconds."""
        due = _Due(at, tuple(paths), unless)
        self._objects.write(_place(at, paths[0]), encode(due))

    def forget(self, at: float, path: str) -> None:
        """Have them kept after all; by the time, and the first of the paths."""
        self._objects.delete(_place(at, path))

    def sweep(self, now: float) -> None:
        """Delete what is due; ``now`` is epoch seconds."""
        for hour in self._objects.names(_FOLDER):
            if hour > _hour(now):
                return
            for name in self._objects.names(f"{_FOLDER}/{hour}"):
                self._sweep(f"{_FOLDER}/{hour}/{name}", now)

    def _sweep(self, place: str, now: float) -> None:
        value = self._objects.read(place)
        if value is None:
            return
        try:
            due = decode(_Due, value)
        except BadRecordError as error:
            logger.warning("%s is passed over: %s", place, error)
            return
        if due.at > now:
            return
        if due.unless is None or self._objects.read(due.unless) is None:
            for path in due.paths:
                self._objects.delete(path)
        self._objects.delete(place)


def _hour(at: float) -> str:
    return f"{int(at // HOUR_S):07x}"


def _place(at: float, path: str) -> str:
    digest = hashlib.sha256(f"{at!r} {path}".encode()).hexdigest()[:32]
    return f"{_FOLDER}/{_hour(at)}/{digest}"
