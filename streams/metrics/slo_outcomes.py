"""Whether a request got what it was to have: the SLO of the request itself.

The metrics and the live view judge by this, each from as much of the evidence as it decodes.
"""

from typing import Protocol

# A rejection for another reason says that the request can't or may not be served.
NO_WORKER = "pool_unavailable"


DIMENSIONS = ("ttft", "tpot", "deadline", "all")


class TargetLatency(Protocol):
    """Of a profile, what an answer has to keep."""

    @property
    def created_at(self) -> float:
        """When latencies begin to count, in epoch seconds."""
        ...

    @property
    def deadline(self) -> float:
        """When the answer has to be there, in epoch seconds."""
        ...

    @property
    def ttft_s(self) -> float | None:
        """The longest time to the first token, if there is a limit."""
        ...

    @property
    def tpot_s(self) -> float | None:
        """The longest time per output token, if there is a limit."""
        ...


class AttainedLatency(Protocol):
    """Latencies of an answer, in seconds since ``created_at``."""

    @property
    def finish_s(self) -> float:
        """Time to the end."""
        ...

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token, of an answer that comes in pieces."""
        ...

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        ...


class JudgedEnd(Protocol):
    """Of the evidence of an end, what is judged."""

    @property
    def step(self) -> str:
        """How the request ended."""
        ...

    @property
    def reason(self) -> str | None:
        """The code of why, without an answer."""
        ...

    @property
    def got(self) -> AttainedLatency | None:
        """What the answer took, if there is one."""
        ...


def outcomes(end: JudgedEnd, wanted: TargetLatency | None) -> dict[str, bool]:
    """Return for each dimension of the SLO whether it was kept, and for ``all`` together.

    Latencies count from ``created_at``. Of a request without an answer only the deadline is known
    to be missed; one that was cancelled or turned away has no SLO, and the result is empty.

    Args:
        end: the step that ended the request.
        wanted: the profile of the request, where it was executed.
    """
    if end.step == "executed":
        if wanted is None or end.got is None:
            return {}
        got = end.got
        kept = {"deadline": wanted.created_at + got.finish_s <= wanted.deadline}
        if wanted.ttft_s is not None and got.ttft_s is not None:
            kept["ttft"] = got.ttft_s <= wanted.ttft_s
        if wanted.tpot_s is not None and got.tpot_s is not None:
            kept["tpot"] = got.tpot_s <= wanted.tpot_s
        return kept | {"all": all(kept.values())}
    is_turned_away = end.step == "rejected" and end.reason != NO_WORKER
    if end.step == "cancelled" or is_turned_away:
        return {}
    return {"deadline": False, "all": False}
