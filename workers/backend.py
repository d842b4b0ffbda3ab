"""The contract between the worker and whatever runs the models."""

from dataclasses import dataclass
from typing import Protocol

from topics import InferenceRequest, Placement, Profile, Response, Usage, VariantStatus


@dataclass(frozen=True, slots=True)
class Call:
    """One request to run. ``is_direct`` work goes before batch work."""

    request: InferenceRequest
    profile: Profile
    placement: Placement

    @property
    def is_direct(self) -> bool:
        """Tell whether somebody waits for the answer."""
        return self.placement.path == "direct"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call. Times are epoch seconds; ``device_s`` is busy device time to charge."""

    response: Response
    usage: Usage
    started_at: float
    first_token_at: float | None
    finished_at: float
    device_s: float


class CallError(Exception):
    """A call that failed.

    Attributes:
        code: stable code, such as ``timeout`` or ``context_too_long``.
        elsewhere: True where another pool may do better; False where the request is at fault.
    """

    def __init__(self, code: str, message: str, *, elsewhere: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.elsewhere = elsewhere


@dataclass(frozen=True, slots=True)
class Load:
    """Load of the backend. ``backlog_s`` is device time of work not begun, per replica."""

    backlog_s: float
    variants: dict[str, VariantStatus]


class Backend(Protocol):
    """Runs the models of one pool.

    Callers may rely on: ``execute`` may be awaited by many at once, up to the slots that the pool
    declares; cancelling it stops the work as soon as the backend can; it raises CallError or
    returns, and any other error is a defect that ends the worker. ``load`` is cheap.
    """

    async def start(self) -> None:
        """Make ready to execute."""
        ...

    async def execute(self, call: Call) -> Outcome:
        """Run one request. Raises CallError."""
        ...

    def load(self) -> Load:
        """Return what is known of the backend's load at this moment."""
        ...

    async def stop(self) -> None:
        """Release what ``start`` took."""
        ...
