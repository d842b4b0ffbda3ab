"""Answers printed as they come, from the streams topic."""

from typing import Any

from rich.console import Console

from streams.engine.log import Record
from topics import BadRecordError, StreamPiece, decode
from topics.terminal_text import visible_line


class Printer:
    """Prints the text of pieces; with several answers at a time, each names its request."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: str | None = None
        self._shown: set[str] = set()
        self.ended: set[str] = set()
        """Requests whose answers were printed to their ends."""

    def take(self, record: Record) -> None:
        """Print a piece, or the rest at the end. An unreadable one is ignored."""
        try:
            piece = decode(StreamPiece, record.value or b"")
        except BadRecordError:
            return
        if piece.result is not None:
            self._end(piece)
        else:
            if piece.index == 0 and piece.id in self._shown:
                self._print(piece.id, "\n(begins again)\n")
            self._print(piece.id, text_of(piece.chunk))

    def _end(self, piece: StreamPiece) -> None:
        result = piece.result
        if result is None:
            return
        if piece.id not in self._shown and result.response is not None:
            self._print(piece.id, text_of(result.response.body))
        why = "" if result.error is None else f": {result.error.message}"
        self._print(piece.id, f"\n({result.status}{why})\n")
        self._last = None
        self.ended.add(piece.id)

    def _print(self, name: str, text: str) -> None:
        if not text:
            return
        if name != self._last:
            gap = "" if self._last is None else "\n"
            self._write(f"{gap}[{visible_line(name)}] ")
            self._last = name
        self._shown.add(name)
        self._write(text)

    def _write(self, text: str) -> None:
        # A model's output may contain control sequences of a terminal.
        safe = "".join(c for c in text if c in "\n\t" or c.isprintable())
        self._console.print(safe, end="", markup=False, highlight=False, soft_wrap=True)


def text_of(body: Any) -> str:
    """Return the text of the first choice of a chunk or an answer, empty if it has none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return ""
    message = first.get("delta") or first.get("message")
    text = message.get("content") if isinstance(message, dict) else first.get("text")
    return text if isinstance(text, str) else ""
