"""Dead letters: records that can't be used, unchanged, with the reason in their headers."""

from functools import partial

from streams.engine.log import LogError, Outgoing, Record
from streams.engine.unexpected_errors import log_unexpected
from topics import Catalogue
from topics.records import headers as h
from topics.wire.errors import BadRecordError


def dead_letter(
    catalogue: Catalogue, record: Record, *, error: Exception, stage: str, reason: str
) -> Outgoing:
    """Return a record's dead letter.

    Where it is too large, with the reason added, its key, value and headers are left out.
    """
    topic, partition = record.partition
    with_reason = partial(
        h.dead_letter,
        topic=topic,
        partition=partition,
        offset=record.offset,
        error=error,
        stage=stage,
        reason=reason,
    )
    # A record without key and value can't be written; an empty key means the same.
    key = b"" if record.key is None and record.value is None else record.key

    def cut() -> Outgoing:
        headers = with_reason([(h.LEFT_OUT, b"key, value and headers")])
        return Outgoing(catalogue.dead_letters, b"", None, headers)

    headers = with_reason(record.headers)
    return Outgoing(catalogue.dead_letters, key, record.value, headers, spare=cut)


def as_bad_record(error: BaseException) -> BadRecordError:
    """Return an error as one of the record; log where an unexpected one was raised.

    Its text is left out: it may hold text of the payload.

    Raises:
        LogError: the error is one of Kafka, not of the record.
    """
    if isinstance(error, LogError):
        raise error
    if isinstance(error, BadRecordError):
        return error
    log_unexpected(error, "a record can't be handled and is set aside")
    message = f"Shunter can't handle the record ({type(error).__name__}): please report this defect"
    return BadRecordError("handle", "unhandled", message)
