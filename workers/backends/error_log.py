"""Unexpected errors of a backend: each is logged once, since it may occur thousands of times."""

import logging
import traceback

logger = logging.getLogger(__name__)


class ErrorLog:
    """Logs errors that a pool's backend raised, by type and place."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._told: set[str] = set()

    def tell(self, error: BaseException) -> None:
        """Log a caught error, unless it was logged before."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        what = f"{type(error).__name__} in {frame.f_code.co_qualname}, line {line}"
        if what in self._told:
            return
        self._told.add(what)
        # Without its message, which may hold text of a request or an answer.
        logger.warning("pool %s: a call failed by %s", self._pool, what)
