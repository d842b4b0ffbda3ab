"""Unexpected errors: which are none, and a log without their text, which may quote the payload."""

import asyncio
import logging
import traceback
from pathlib import Path

logger = logging.getLogger(__name__)


def is_asked_for(error: BaseException) -> bool:
    """Return True for the cancellation of the running task that somebody has asked for.

    Any other comes of what the task waited for, and says nothing of the task.
    """
    task = asyncio.current_task()
    is_cancelled = isinstance(error, asyncio.CancelledError)
    return is_cancelled and task is not None and task.cancelling() > 0


def log_unexpected(error: BaseException, what: str) -> None:
    """Log an unexpected error: its type and where it was raised.

    Its text is left out: it may quote the payload.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{_place(f.filename)}:{f.lineno} {f.name}" for f in reversed(frames))
    logger.error("%s: %s raised at %s", what, type(error).__name__, where or "no known place")


def _place(filename: str) -> str:
    """Return a file's name with its folder, since many folders have files of the same name."""
    return "/".join(Path(filename).parts[-2:])
