"""The gate: which key a request came with, and whether its tenant has sent too many."""

from policies import Policy, Rates, UnservableError
from streams.engine.log import Record
from streams.router.keys import ProvenKeys
from topics import InferenceRequest


class Gate:
    """Lets requests and questions in, under the policy in force."""

    def __init__(self, policy: Policy, key_secret: str | None) -> None:
        self._keys = ProvenKeys(key_secret)
        self._rates = Rates(policy)

    def take(self, policy: Policy) -> None:
        """Go by another policy."""
        self._rates.policy = policy

    def admit(
        self, record: Record, request: InferenceRequest, part: float, now: float
    ) -> str | None:
        """Return the id of the key that a request came with, or None, and count the request.

        Args:
            record: that it came in.
            request: as it was parsed.
            part: this process's part of the partitions that requests come on; above 0.
            now: epoch seconds.

        Raises:
            UnservableError: it needs another key, or its tenant has sent too many.
        """
        key = self.key_of(record, request)
        # A backlog that is read at once arrived over time: by the broker's clock, which no client
        # sets.
        came_at = min(record.came_at(now), now)
        wait_s = self._rates.wait_s(request.tenant, came_at, part)
        if wait_s:
            message = f"tenant {request.tenant!r} exceeds its rate; try again in {wait_s:.1f} s"
            raise UnservableError("rate_limited", message, came_at + wait_s)
        return key

    def key_of(self, record: Record, request: InferenceRequest) -> str | None:
        """Return the id of the key that a request came with, or None.

        Raises:
            UnservableError: it needs another.
        """
        return self._keys.of(record, request, self._rates.policy)
