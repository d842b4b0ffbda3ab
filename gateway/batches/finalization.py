"""The end of a batch: its lines made files, and its record final."""

from gateway.batches.output import ERRORS, OUTPUT, Output
from gateway.batches.record import BatchRecord, Status
from gateway.batches.store import BatchFolder
from gateway.files.store import FileRecord, FileStore
from gateway.files.threads import in_thread

_LETTERS = {OUTPUT: "o", ERRORS: "e"}


class Ending:
    """Ends a batch whose lines all have an end; may be done again, with the same result."""

    def __init__(
        self, folder: BatchFolder, batch: BatchRecord, output: Output, files: FileStore
    ) -> None:
        self._folder = folder
        self._batch = batch
        self._output = output
        self._files = files

    async def finish(self, now: float) -> None:
        """Write files and record; ``now`` is epoch seconds."""
        await in_thread(self._finish, now)

    def _finish(self, now: float) -> None:
        batch = self._batch
        batch.counts = self._output.counts
        with self._folder.gate():
            cancelling_at = self._folder.cancelling_at()
            if cancelling_at is None and batch.status != "finalizing":
                batch.enter("finalizing", now)
            elif cancelling_at is not None and batch.status != "cancelling":
                batch.enter("cancelling", cancelling_at)
            self._folder.write(batch)
        batch.output_file_id = self._file(OUTPUT, now)
        batch.error_file_id = self._file(ERRORS, now)
        batch.enter(self._status(now), now)
        self._folder.write(batch)

    def _status(self, now: float) -> Status:
        if self._batch.status == "cancelling":
            return "cancelled"
        # A line may have had a deadline of its own before the batch's.
        return "expired" if self._output.expired and now >= self._batch.expires_at else "completed"

    def _file(self, name: str, now: float) -> str | None:
        """Return the id of a file with these lines; None if there are none."""
        if not self._output.has_lines(name):
            return None
        batch = self._batch
        file_id = f"file-{batch.id.removeprefix('batch_')}{_LETTERS[name]}"
        lasts_s = batch.output_expires_s
        with self._files.upload() as path:
            size = self._output.copy(name, path)
            record = FileRecord(
                id=file_id,
                tenant=batch.tenant,
                bytes=size,
                created_at=now,
                filename=f"{batch.id}_{name}.jsonl",
                purpose="batch_output",
                expires_at=None if lasts_s is None else now + lasts_s,
            )
            self._files.add(record, path)
        return file_id
