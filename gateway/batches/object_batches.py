"""Batches in an object store, where nothing is locked and what is created is created once.

- ``open/ID-TENANT``: there is a batch that has not ended
- ``open/ID-TENANT.NUMBER``: the gateway that owns it, of several the last
- ``open/ID-TENANT.cancel``: it is cancelled, for its owner to see
- ``batches/TENANT/ID/…``: its record, its input, its verdict and the segments of its log
"""

import contextlib
import os
import secrets
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.batches.object_log import ObjectLog
from gateway.batches.record import CANCELLABLE, FINAL, BatchRecord, Status
from gateway.batches.signs_of_life import SignsOfLife
from gateway.batches.store import NotCancellableError, NotOwnerError, is_batch_id
from gateway.exchange.request_ids import tenant_tag
from gateway.files.expiries import Expiries
from gateway.files.threads import in_thread
from streams.engine.clock import Clock
from topics import decode, encode
from topics.objects import PIECE_BYTES, Objects

# What was begun so long ago and is no batch has no gateway any more.
BEGUN_S_MAX = 86_400.0
_OPEN, _CANCEL = "open", "cancel"


@dataclass(frozen=True, slots=True)
class BatchVerdict:
    """The choice between cancellation and end of a batch, made by whoever creates it first."""

    is_cancelled: bool
    at: float
    nonce: str


class ObjectBatch:
    """One batch.

    Args:
        store: all batches.
        tag: of its tenant.
        batch_id: its id.
    """

    def __init__(self, store: "ObjectBatches", tag: str, batch_id: str) -> None:
        self.base = f"batches/{tag}/{batch_id}"
        self.mark = f"{batch_id}-{tag}"
        self.store = store
        self._objects = store.objects
        self._written = b""
        self._owner: str | None = None

    def read(self) -> BatchRecord:
        """Return the record as it is now."""
        # In this order: the record in progress goes when the final one is there.
        progress = self._objects.read(self.progress)
        value = self._objects.read(self.final) or progress
        if value is None:
            raise FileNotFoundError(self.base)
        return decode(BatchRecord, value)

    def write(self, batch: BatchRecord) -> None:
        """Replace the record. One that is final counts, whoever writes another later."""
        value = encode(batch)
        if value != self._written:
            self._objects.write(self.final if batch.status in FINAL else self.progress, value)
            self._written = value

    def cancelling_at(self) -> float | None:
        """Return when somebody cancelled the batch; None if nobody has."""
        return cancelled_at(self._objects.read(self.verdict))

    def seen_cancelling_at(self) -> float | None:
        """Return the same as of the last look at what is open."""
        return self.store.cancelled.get(self.mark)

    def cancel(self, now: float) -> None:
        """Ask for the batch to be cancelled; once this returns, it is never completed."""
        status = self.read().status
        if status not in CANCELLABLE and status != "cancelling":
            raise NotCancellableError(status)
        if not self._decide(BatchVerdict(True, now, secrets.token_hex(8))).is_cancelled:
            raise NotCancellableError("finalizing" if status in CANCELLABLE else status)
        self._objects.write(f"{_OPEN}/{self.mark}.{_CANCEL}", b"")

    def settle(self, batch: BatchRecord, status: Status, now: float) -> None:
        """Enter a status after which nobody may cancel, or ``cancelling`` if somebody has."""
        verdict = self._decide(BatchVerdict(False, now, secrets.token_hex(8)))
        if verdict.is_cancelled:
            status, now = "cancelling", verdict.at
        if batch.status != status:
            batch.enter(status, now)
        self.write(batch)

    @contextlib.asynccontextmanager
    async def owned(self) -> AsyncIterator[bool]:
        """Try to own the batch; of a gateway that has died it is taken after twelve seconds."""
        self._owner = await in_thread(self.store.claim, self.mark)
        yield self._owner is not None

    def check_owned(self) -> None:
        """Return if nobody else can own the batch now."""
        members = self.store.members
        if not members.is_sure or members.name != self._owner:
            raise NotOwnerError(f"{self._objects.url} was not reached for some time")

    def open_input(self) -> int:
        """Return a descriptor of a copy of the input, which goes when that is closed."""
        copies = self.store.copies
        with tempfile.TemporaryFile(dir=copies) as copy, self._objects.open(self.input) as source:
            while piece := source.read(PIECE_BYTES):
                copy.write(piece)
            copy.flush()
            return os.dup(copy.fileno())

    def open_log(self, total: int) -> ObjectLog:
        """Return the log of a batch with so many lines, as its last owner left it."""
        return ObjectLog(self._objects, f"{self.base}/log", total)

    def close(self) -> None:
        """Forget what an ended batch needs no more; the mark goes last."""
        for name in self._objects.names(f"{self.base}/log"):
            self._objects.delete(f"{self.base}/log/{name}")
        self._objects.delete(self.input)
        self._objects.delete(self.progress)
        self.store.forget(self.mark)

    @property
    def input(self) -> str:
        """The path of its input."""
        return f"{self.base}/input"

    @property
    def progress(self) -> str:
        """The path of its record until it has ended."""
        return f"{self.base}/batch.json"

    @property
    def final(self) -> str:
        """The path of its record then."""
        return f"{self.base}/ended.json"

    @property
    def verdict(self) -> str:
        """The path of its verdict."""
        return f"{self.base}/verdict"

    def _decide(self, wanted: BatchVerdict) -> BatchVerdict:
        value = encode(wanted)
        if self._objects.create(self.verdict, value):
            return wanted
        return decode(BatchVerdict, self._objects.read(self.verdict) or value)


class ObjectBatches:
    """Batches of all tenants below one URL that all gateways share."""

    def __init__(
        self, objects: Objects, expiries: Expiries, clock: Clock, copies: Path | None = None
    ) -> None:
        """Begin with nothing known.

        Args:
            objects: the store.
            expiries: its index of what is to be deleted.
            clock: the process's.
            copies: directory for copies of inputs; None: that of temporary files.

        Raises:
            OSError: nothing can be written there.
        """
        self.objects = objects
        self.copies = copies
        # Whether anything can be written there is known before a batch needs it.
        with tempfile.TemporaryFile(dir=copies):
            pass
        self.members = SignsOfLife(objects, clock)
        self.cancelled: dict[str, float] = {}
        """By mark, when batches were cancelled that have not ended."""
        self._expiries = expiries
        self._terms: dict[str, tuple[int, str]] = {}
        """By mark, number and name of the last owner."""

    def start(self) -> None:
        """Begin to be one of those that may own batches."""
        self.members.beat()

    def beat(self) -> None:
        """Tell the others that this process lives."""
        self.members.beat()

    def stop(self) -> None:
        """Tell the others that it owns nothing any more."""
        self.members.leave()

    def create(self, batch: BatchRecord, place: str) -> None:
        """Make a batch whose input is a copy of the contents; it is there as a whole, or not."""
        folder = ObjectBatch(self, tenant_tag(batch.tenant), batch.id)
        mark, left_at = f"{_OPEN}/{folder.mark}", batch.created_at + BEGUN_S_MAX
        # Before the batch is there: a mark alone is no harm, a batch without one is forgotten.
        self._expiries.note(left_at, [mark, folder.input], unless=folder.progress)
        self.objects.write(mark, b"")
        self.objects.copy(place, folder.input)
        self.objects.create(folder.progress, encode(batch))
        self._expiries.forget(left_at, mark)

    def get(self, tenant: str, batch_id: str) -> ObjectBatch | None:
        """Return a tenant's batch, or None."""
        if not is_batch_id(batch_id):
            return None
        folder = ObjectBatch(self, tenant_tag(tenant), batch_id)
        # In this order: see ``ObjectBatch.read``.
        places = folder.progress, folder.final
        return folder if any(self.objects.read(place) for place in places) else None

    def told(self, tenant: str, batch_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return OpenAI's objects of those that are there, by id."""
        tag = tenant_tag(tenant)
        folders = {each: ObjectBatch(self, tag, each) for each in batch_ids}
        progress = self.objects.read_all([each.progress for each in folders.values()])
        # After the records in progress, as one of them may have ended meanwhile.
        final = self.objects.read_all([each.final for each in folders.values()])
        verdicts = self.objects.read_all([each.verdict for each in folders.values()])
        shown = {}
        for batch_id, folder in folders.items():
            value = final.get(folder.final) or progress.get(folder.progress)
            if value is not None:
                cancelling_at = cancelled_at(verdicts.get(folder.verdict))
                shown[batch_id] = decode(BatchRecord, value).told(cancelling_at)
        return shown

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's batches, the oldest first."""
        names = self.objects.names(f"batches/{tenant_tag(tenant)}")
        return [name for name in names if is_batch_id(name)]

    def open_batches(self) -> list[tuple[str, ObjectBatch]]:
        """Return the batches that have not ended, the oldest first, by one look at the marks."""
        marks: list[str] = []
        numbers: dict[str, int] = defaultdict(int)
        cancelled: set[str] = set()
        for name in self.objects.names(_OPEN):
            mark, _, what = name.partition(".")
            if not what:
                marks.append(mark)
            elif what == _CANCEL:
                cancelled.add(mark)
            else:
                numbers[mark] = max(numbers[mark], int(what))
        known = {mark: self._terms[mark] for mark in numbers if mark in self._terms}
        for mark, number in numbers.items():
            if known.get(mark, (0, ""))[0] < number:
                owner = self.objects.read(_term(mark, number)) or b""
                known[mark] = number, owner.decode()
        self._terms = known
        folders = [(mark, ObjectBatch(self, *_home(mark))) for mark in marks]
        self.cancelled = {
            mark: at
            for mark, folder in folders
            if mark in cancelled
            and (at := self.cancelled.get(mark) or folder.cancelling_at()) is not None
        }
        return [(mark.partition("-")[0], folder) for mark, folder in folders]

    def claim(self, mark: str) -> str | None:
        """Own a batch, if nobody does who lives; return the name that it is owned by, or None."""
        if not self.members.is_sure:
            return None
        name = self.members.name
        number, owner = self._terms.get(mark, (0, ""))
        if owner == name:
            return name
        if owner and not self.members.is_gone(owner):
            return None
        place, value = _term(mark, number + 1), name.encode()
        if not self.objects.create(place, value) and self.objects.read(place) != value:
            return None
        self._terms[mark] = number + 1, name
        return name

    def forget(self, mark: str) -> None:
        """Forget that a batch is open, and who had it."""
        for name in self.objects.names(_OPEN):
            if name.startswith(f"{mark}."):
                self.objects.delete(f"{_OPEN}/{name}")
        self.objects.delete(f"{_OPEN}/{mark}")

    def sweep(self, now: float) -> None:
        """Delete what nobody needs of gateways that died, and what remained of ended batches."""
        del now
        self.members.sweep()
        names = self.objects.names(_OPEN)
        marks = {name for name in names if "." not in name}
        for name in names:
            if name.partition(".")[0] not in marks:
                self.objects.delete(f"{_OPEN}/{name}")


def cancelled_at(verdict: bytes | None) -> float | None:
    """Return when a batch was cancelled, by its verdict; None if it was not."""
    found = None if verdict is None else decode(BatchVerdict, verdict)
    return None if found is None or not found.is_cancelled else found.at


def _home(mark: str) -> tuple[str, str]:
    batch_id, _, tag = mark.partition("-")
    return tag, batch_id


def _term(mark: str, number: int) -> str:
    return f"{_OPEN}/{mark}.{number:06d}"
