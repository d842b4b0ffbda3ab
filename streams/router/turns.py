"""The order in which a router decides on what one poll of a partition brought."""

from collections.abc import Callable, Sequence
from operator import itemgetter

from streams.engine.log import Record
from topics import InferenceRequest

Read = InferenceRequest | Exception
"""A record as it was read, or why it can't be."""

Turn = tuple[Record, Read, int | None]
"""A record as read, and the offset of the first of its id where it is a duplicate."""

# Tiers that are decided on before the others, or after them.
URGENCY = {"priority": 1, "flex": -1, "batch": -1}


def in_turn(
    records: Sequence[Record], read: Sequence[Read], first: Callable[[Record, str], int | None]
) -> list[Turn]:
    """Return what a poll brought, urgent requests first and else in the partition's order.

    All of it is one transaction, so that no progress depends on the order. But who is decided on
    first finds the pools emptier, and goes ahead in its lane. Which of two requests of one id is
    the first, the partition's order says.

    Args:
        records: of the poll, by offset.
        read: each of them.
        first: notes a request, and returns the offset of the first of its id, None if it is new.
    """
    turns: list[tuple[int, Turn]] = []
    for record, request in zip(records, read, strict=True):
        if isinstance(request, InferenceRequest):
            # A question what it would cost is no request, and has no id among them.
            seen = None if request.quote else first(record, request.id)
            turns.append((URGENCY.get(request.service_tier, 0), (record, request, seen)))
        else:
            turns.append((0, (record, request, None)))
    turns.sort(key=itemgetter(0), reverse=True)
    return [turn for _, turn in turns]
