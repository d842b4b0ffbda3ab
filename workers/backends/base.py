"""The contract between the worker and whatever runs the models."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from topics import InferenceRequest, Placement, Profile, Response, ServerLoad, Usage, VariantStatus

Retry = Literal["here", "elsewhere", "never"]
"""Where a failed call may be tried again: at the same server, at another pool, nowhere."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to run. ``is_direct`` work goes before batch work.

    ``tell``, where it is given, wants each piece of the answer as it comes: a chunk as an
    OpenAI-compatible server streams it. Backends that have no pieces never call it.
    """

    request: InferenceRequest
    profile: Profile
    placement: Placement
    tell: Callable[[dict[str, Any]], Awaitable[None]] | None = None

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
        message: for people; holds no text of the request or of the answer.
        retry: ``here`` where the same server may take it in a moment, ``elsewhere`` where another
            pool may do better, ``never`` where the request is at fault.
        is_pool_fault: True where the failure says that the server is not well, and counts for its
            circuit breaker.
        after_s: how long the server asked to be left alone, in seconds.
        response: what the server answered, for the client whose request is at fault.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry: Retry,
        is_pool_fault: bool = False,
        after_s: float | None = None,
        response: Response | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry = retry
        self.is_pool_fault = is_pool_fault
        self.after_s = after_s
        self.response = response


class BackendSettingError(ValueError):
    """A backend can't be made of what its pool declares; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load of the backend. ``backlog_s`` is device time of work not begun, per replica.

    ``server`` is what the model server itself tells, where it does.
    """

    backlog_s: float
    variants: dict[str, VariantStatus]
    server: ServerLoad | None = None


class Backend(Protocol):
    """Runs the models of one pool.

    Callers may rely on: ``execute`` may be awaited by many at once, up to the slots that the pool
    declares; cancelling it stops the work as soon as the backend can; it raises CallError or
    returns, and any other error is a defect, which fails the call and counts for the circuit.
    ``probe`` asks as little as shows that the variant answers. ``load`` is cheap.
    """

    async def start(self) -> None:
        """Make ready to execute."""
        ...

    async def execute(self, call: Call) -> Outcome:
        """Run one request. Raises CallError."""
        ...

    async def probe(self, variant: str) -> None:
        """See that the variant answers. Raises CallError."""
        ...

    def load(self) -> Load:
        """Return what is known of the backend's load at this moment."""
        ...

    async def stop(self) -> None:
        """Release what ``start`` took."""
        ...
