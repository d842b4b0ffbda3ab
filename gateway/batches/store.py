"""Batches of all tenants, wherever they are kept: state, log and owner of each."""

import contextlib
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from gateway.batches.journal import JournalContents, Run
from gateway.batches.record import BatchCounts, BatchRecord, Status

_ID = re.compile(r"batch_[0-9a-f]{11}[0-9a-f]{16}")


def new_batch_id(now: float) -> str:
    """Return an id that sorts by time; ``now`` is epoch seconds."""
    return f"batch_{int(now * 1000):011x}{secrets.token_hex(8)}"


def is_batch_id(text: str) -> bool:
    """Return whether a text can be the id of a batch."""
    return _ID.fullmatch(text) is not None


class NotCancellableError(Exception):
    """The batch has ended, or is about to; ``status`` says how."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class NotOwnerError(OSError):
    """Another gateway has gone on with the batch, or may have."""


class BatchLog(Protocol):
    """The log of what was published of a batch and has ended: it outlives who writes it.

    ``intend``, ``read_to``, ``flush`` and ``copy`` block, and may raise OSError; what they were
    given, and what was added before, then stays.
    """

    counts: BatchCounts
    done_count: int
    expired: int
    """Lines that never ended in time."""

    @property
    def state(self) -> JournalContents:
        """The state of publications."""
        ...

    @property
    def is_full(self) -> bool:
        """True if so much was added that it should be flushed."""
        ...

    def is_done(self, n: int) -> bool:
        """Return whether a line, counted from 0, has an end."""
        ...

    def add(self, n: int, line: dict[str, Any], *, is_error: bool) -> None:
        """Take in a line's end, unless there is one."""
        ...

    def intend(self, runs: Iterable[Run], now: float) -> None:
        """Note what is about to be published; ``now`` is epoch seconds."""
        ...

    def published(self, runs: Iterable[Run]) -> None:
        """Note what of that Kafka has. It may be lost, and is asked for then."""
        ...

    def read_to(self, positions: Mapping[int, int], again: Iterable[int]) -> None:
        """Note how far results are read: the ends of all before have been added."""
        ...

    def flush(self) -> None:
        """Keep what was added."""
        ...

    def told_every_s(self, age_s: float) -> float:
        """Return how often a batch of an age is to tell how far it is; both in seconds."""
        ...

    def has_lines(self, *, errors: bool) -> bool:
        """Return whether any line is of the output, or of the errors."""
        ...

    def copy(self, write: Callable[[bytes], None], *, errors: bool) -> None:
        """Write the output, or the errors: each line once."""
        ...

    def close(self) -> None:
        """Write no more."""
        ...


class BatchFolder(Protocol):
    """One batch. All of it outlives any process. Calls block, and may raise OSError."""

    def read(self) -> BatchRecord:
        """Return the record as it is now. Raises FileNotFoundError."""
        ...

    def write(self, batch: BatchRecord) -> None:
        """Replace the record; only the owner does."""
        ...

    def cancelling_at(self) -> float | None:
        """Return when somebody cancelled the batch; None if nobody has."""
        ...

    def seen_cancelling_at(self) -> float | None:
        """Return the same as of a second ago, at once."""
        ...

    def cancel(self, now: float) -> None:
        """Ask for the batch to be cancelled; once this returns, it is never completed.

        Raises:
            NotCancellableError: it has ended, or its files are being written.
        """
        ...

    def settle(self, batch: BatchRecord, status: Status, now: float) -> None:
        """Enter a status after which nobody may cancel, or ``cancelling`` if somebody has."""
        ...

    def owned(self) -> contextlib.AbstractAsyncContextManager[bool]:
        """Try to own the batch; who has died owns none."""
        ...

    def check_owned(self) -> None:
        """Return if nobody else can own the batch now; this does not block.

        Raises:
            NotOwnerError: somebody may.
        """
        ...

    def open_input(self) -> int:
        """Return a descriptor of the input, on this machine. Raises FileNotFoundError."""
        ...

    def open_log(self, total: int) -> BatchLog:
        """Return the log of a batch with so many lines, as its last owner left it."""
        ...

    def close(self) -> None:
        """Forget what an ended batch needs no more."""
        ...


class BatchStore(Protocol):
    """Batches that all gateways share. Calls block, and may raise OSError."""

    def start(self) -> None:
        """Begin to be one of those that may own batches."""
        ...

    def beat(self) -> None:
        """Tell the others, every two seconds, that this process lives."""
        ...

    def stop(self) -> None:
        """Tell the others that it owns nothing any more."""
        ...

    def create(self, batch: BatchRecord, place: str) -> None:
        """Make a batch of a file's contents; it is there as a whole, or not.

        One of that id which is there already stays as it is.

        Raises:
            FileNotFoundError: the contents were deleted.
        """
        ...

    def get(self, tenant: str, batch_id: str) -> BatchFolder | None:
        """Return a tenant's batch, or None."""
        ...

    def told(self, tenant: str, batch_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return OpenAI's objects of those that are there, by id; at most a hundred."""
        ...

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's batches, the oldest first."""
        ...

    def open_batches(self) -> Sequence[tuple[str, BatchFolder]]:
        """Return the batches that have not ended, the oldest first."""
        ...

    def sweep(self, now: float) -> None:
        """Delete what gateways began and died before it was a batch."""
        ...


def told(folder: BatchFolder) -> dict[str, Any]:
    """Return OpenAI's object of a batch."""
    # In this order: a record that is older than the mark is told as cancelling.
    batch = folder.read()
    return batch.told(folder.cancelling_at())
