"""The end of a batch: its lines made files, and its record final."""

from gateway.batches.record import BatchRecord, Status
from gateway.batches.store import BatchFolder, BatchLog
from gateway.files.store import FileRecord, FileStore
from gateway.files.threads import in_thread


class Ending:
    """Ends a batch whose lines all have an end; may be done again, with the same result."""

    def __init__(
        self, folder: BatchFolder, batch: BatchRecord, log: BatchLog, files: FileStore
    ) -> None:
        self._folder = folder
        self._batch = batch
        self._log = log
        self._files = files

    async def finish(self, now: float) -> None:
        """Write files and record; ``now`` is epoch seconds."""
        await in_thread(self._finish, now)

    def _finish(self, now: float) -> None:
        batch = self._batch
        self._log.flush()
        batch.counts, batch.turned_away = self._log.counts, None
        self._folder.settle(batch, "finalizing", now)
        batch.output_file_id = self._file("output", now)
        batch.error_file_id = self._file("errors", now)
        batch.enter(self._status(now), now)
        self._folder.write(batch)

    def _status(self, now: float) -> Status:
        if self._batch.status == "cancelling":
            return "cancelled"
        # A line may have had a deadline of its own before the batch's.
        return "expired" if self._log.expired and now >= self._batch.expires_at else "completed"

    def _file(self, name: str, now: float) -> str | None:
        """Return the id of a file with these lines; None if there are none."""
        errors = name == "errors"
        if not self._log.has_lines(errors=errors):
            return None
        batch = self._batch
        file_id = f"file-{batch.id.removeprefix('batch_')}{name[0]}"
        lasts_s = batch.output_expires_s
        contents = self._files.begin(batch.tenant, file_id)
        try:
            self._log.copy(contents.write, errors=errors)
            record = FileRecord(
                id=file_id,
                tenant=batch.tenant,
                bytes=contents.size,
                created_at=now,
                filename=f"{batch.id}_{name}.jsonl",
                purpose="batch_output",
                expires_at=None if lasts_s is None else now + lasts_s,
            )
            self._files.add(record, contents)
        finally:
            contents.close()
        return file_id
