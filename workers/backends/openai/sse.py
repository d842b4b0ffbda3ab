"""Server-sent events of a model server's stream, with bounded size whatever the server sends."""

from collections.abc import AsyncIterator

from workers.backends.base import CallError

EVENT_BYTES_MAX = 1024 * 1024
_DATA = b"data:"


async def read_events(pieces: AsyncIterator[bytes], bytes_max: int) -> AsyncIterator[bytes]:
    """Yield the data of each event.

    Source: the event stream format of the HTML standard; no server here uses its other fields.

    Args:
        pieces: the body as it comes.
        bytes_max: longest body.

    Raises:
        CallError: the body or one event is too long.
    """
    values: list[bytes] = []
    rest, event_bytes = b"", 0
    async for line in _lines(pieces, bytes_max):
        if line.startswith(_DATA):
            values.append(line[len(_DATA) :].removeprefix(b" "))
            event_bytes += len(line) + 1
            if event_bytes > EVENT_BYTES_MAX:
                raise too_large(EVENT_BYTES_MAX)
        elif not line:
            if data := b"\n".join(values):
                yield data
            values, event_bytes = [], 0
        rest = line
    # The last event of a body that ends without a blank line, if its own line had an end.
    if rest.startswith(_DATA) and (data := b"\n".join(values)):
        yield data


async def _lines(pieces: AsyncIterator[bytes], bytes_max: int) -> AsyncIterator[bytes]:
    buffered, total = bytearray(), 0
    async for piece in pieces:
        total += len(piece)
        if total > bytes_max:
            raise too_large(bytes_max)
        *lines, last = piece.split(b"\n")
        for line in lines:
            buffered += line
            yield bytes(buffered.removesuffix(b"\r"))
            buffered.clear()
        buffered += last
        if len(buffered) > EVENT_BYTES_MAX:
            raise too_large(EVENT_BYTES_MAX)


def too_large(bytes_max: int) -> CallError:
    """Return the error for an answer that exceeds its limit."""
    message = f"the server's answer has more than {bytes_max:,} bytes; it was cut off"
    return CallError("answer_too_large", message, retry="elsewhere")
