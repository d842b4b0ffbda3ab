"""Unexpected errors, logged without their text, which may quote the payload."""

import logging
import traceback
from pathlib import Path

logger = logging.getLogger(__name__)


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
