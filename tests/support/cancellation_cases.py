"""Cancellations that every process of a yard knows, and what is to come of each."""

from stream_cases import START, Yard

from streams.cancellation.index import CANCELLED
from topics import Cancellation

LEFT = Cancellation("the user has left")


def cancel(yard: Yard, *request_ids: str, at: float = START) -> None:
    """Let every process know of cancellations, as its follower does."""
    for request_id in request_ids:
        yard.cancellations.add(request_id, LEFT, at)


def assert_cancelled_once(yard: Yard, request_id: str) -> None:
    result = yard.results()[request_id]
    assert result.status == "cancelled"
    assert result.error is not None
    assert result.error.code == "cancelled"
    assert result.error.message == "the client cancelled the request: the user has left"
    (evidence,) = [e for e in yard.evidence("cancelled") if e.request_id == request_id]
    # The reason is for the client alone.
    assert (evidence.reason, evidence.message) == ("cancelled", CANCELLED)
