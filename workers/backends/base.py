"""The contract between the worker and whatever runs the models."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from streams.engine.trace_context import Context
from topics import InferenceRequest, Placement, Profile, Response, ServerLoad, Usage, VariantStatus

Retry = Literal["here", "elsewhere", "never"]
"""Target of a retry after a failed call: the same server, another pool, none."""

INPUTS_MAX = 2048
"""Texts of a request that a backend here computes by itself: as many as OpenAI takes."""


@dataclass(slots=True)
class CallMeter:
    """The use of a call's tries that gave no answer: device time in seconds, tokens."""

    device_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, device_s: float, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Count a try that failed or was cancelled."""
        self.device_s += device_s
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


@dataclass(frozen=True, slots=True)
class Call:
    """One request to run. ``is_direct`` work goes before batch work.

    ``tell``, if given, is called with each piece of the answer as it comes: a chunk as an
    OpenAI-compatible server streams it. Backends without streaming never call it. ``meter`` takes
    what a try has used that raises, cancellation included. ``context`` is the trace and the span
    below which a server's own spans belong; None where nobody traces.
    """

    request: InferenceRequest
    profile: Profile
    placement: Placement
    tell: Callable[[dict[str, Any]], Awaitable[None]] | None = None
    meter: CallMeter = field(default_factory=CallMeter)
    context: Context | None = None

    @property
    def is_direct(self) -> bool:
        """Return True if a client waits for the answer."""
        return self.placement.path == "direct"

    @property
    def urgency(self) -> int:
        """Return how soon it is to run, as `urgency_of` has it."""
        return urgency_of(self.profile, self.placement)


def urgency_of(profile: Profile, placement: Placement) -> int:
    """Return 1 for direct work of tier ``priority``, 0 for other direct work, else -1."""
    return int(profile.tier == "priority") if placement.path == "direct" else -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a call. Times are epoch seconds; ``device_s`` is busy device time to charge."""

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
        retry: ``here`` if the same server may take it in a moment, ``elsewhere`` if another pool
            may do better, ``never`` if the request is at fault.
        is_pool_fault: True if the failure shows an unhealthy server, and counts for its circuit
            breaker.
        after_s: seconds that the server asked to wait.
        response: the server's answer, for the client whose request is at fault.
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
    """A backend can't be created from its pool's declaration; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load of the backend. ``backlog_s`` is device time of unstarted work, per replica.

    ``server`` is the model server's own report, if any; ``factors`` what was learned of the
    device's constants, and ``factors_known`` how much of it was measured, 0 to 1;
    ``idle_replicas`` are those on which nothing runs or waits, None where that isn't known;
    ``migrations`` counts the replies that went on at another replica, None where they stay.
    """

    backlog_s: float
    variants: dict[str, VariantStatus]
    server: ServerLoad | None = None
    factors: tuple[float, ...] | None = None
    factors_known: float = 0.0
    idle_replicas: int | None = None
    migrations: int | None = None


class Backend(Protocol):
    """Runs the models of one pool.

    Guarantees: ``execute`` may be awaited concurrently, up to the slots that the pool declares;
    cancelling it stops the work as soon as the backend can; one that gives no answer adds what it
    used to the call's meter; it returns or raises CallError, and
    any other error is a defect, which fails the call and counts for the circuit. ``probe`` sends
    the least request that shows that the variant answers. ``load`` is cheap.
    """

    async def start(self) -> None:
        """Prepare to execute."""
        ...

    async def execute(self, call: Call) -> Outcome:
        """Run one request. Raises CallError."""
        ...

    async def probe(self, variant: str) -> None:
        """Check that the variant answers. Raises CallError."""
        ...

    def load(self) -> Load:
        """Return the backend's current load, as far as known."""
        ...

    async def stop(self) -> None:
        """Release the resources of ``start``."""
        ...
