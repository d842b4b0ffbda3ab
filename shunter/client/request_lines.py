"""The lines of a request file: the valid ones, and the errors of the others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from topics import BadRecordError, parse_request


@dataclass(frozen=True, slots=True)
class BadLine:
    """An invalid line; ``number`` counts from 1."""

    number: int
    reason: str


@dataclass(slots=True)
class Checked:
    """The lines of a file. ``ids`` maps the number of each valid line to its request's id."""

    ids: dict[int, str] = field(default_factory=dict)
    sessions: dict[int, str] = field(default_factory=dict)
    """By line number, what names the conversation of a request, if anything does."""
    streamed: set[str] = field(default_factory=set)
    """Requests whose answers are wanted in pieces."""
    bad: list[BadLine] = field(default_factory=list)


def check_lines(lines: Iterable[bytes], *, bytes_max: int, with_questions: bool = True) -> Checked:
    """Separate the valid lines of a file from the invalid; blank lines are skipped.

    Args:
        lines: of the file.
        bytes_max: longest request.
        with_questions: whether a line may ask what it would cost, which gets no result.
    """
    checked = Checked()
    number_of: dict[str, int] = {}
    for number, value in _values(lines):
        try:
            request = parse_request(value, bytes_max=bytes_max)
        except BadRecordError as error:
            checked.bad.append(BadLine(number, error.message))
            continue
        found = request.id
        if request.quote and not with_questions:
            reason = "it asks what it would cost (quote), and gets no result: `shunter quote` asks"
            checked.bad.append(BadLine(number, reason))
            continue
        if found in number_of:
            reason = f"the id {found!r} stands on line {number_of[found]} already"
            checked.bad.append(BadLine(number, reason))
            continue
        number_of[found] = number
        checked.ids[number] = found
        if (session := request.conversation) is not None:
            checked.sessions[number] = session
        if request.body.get("stream") is True:
            checked.streamed.add(found)
    return checked


def good_lines(lines: Iterable[bytes], checked: Checked) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, id and value of each valid line, its bytes unchanged but for the line end."""
    for number, value in _values(lines):
        found = checked.ids.get(number)
        if found is not None:
            yield number, found, value


def _values(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        value = line.removesuffix(b"\n").removesuffix(b"\r")
        if value.strip():
            yield number, value
