"""The wait for an answer: its limit, and what its client is told when nothing comes."""

import asyncio

from gateway.api.runs import Run, abandon
from gateway.api.translation import Wanted
from gateway.http.errors import ApiError
from gateway.http.state import Gateway


class Patience:
    """The limit of one request's wait: its client's deadline, or else how long nothing may come.

    An offer that was taken has its own deadline, which routers and workers keep; the limit counts
    from that. Where nothing has come by the limit, nobody works on the request any more, and it is
    cancelled as if its client had left.
    """

    def __init__(self, gateway: Gateway, run: Run, wanted: Wanted) -> None:
        self._gateway = gateway
        self._run = run
        self._deadline = wanted.deadline
        self._s_max = gateway.settings.gateway_answer_s_max
        self._limit: asyncio.Timeout | None = None

    def limit(self) -> asyncio.Timeout:
        """Return the context that ends with TimeoutError when it is over."""
        self._limit = asyncio.timeout(self._left_s())
        return self._limit

    def heard(self) -> None:
        """Begin to wait anew, as something of the answer has come. A deadline stays."""
        if self._deadline is None and self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._s_max)

    def give_up(self) -> ApiError:
        """Return the error of a wait that is over, and cancel what nobody would have ended."""
        if self._deadline is not None:
            return ApiError(504, "deadline_exceeded", "the deadline has passed")
        told = f"nothing came of the request within {self._s_max:g} s"
        abandon(self._gateway, self._run, told)
        message = f"{told} (SHUNTER_GATEWAY_ANSWER_S_MAX); name a deadline to wait for longer"
        return ApiError(504, "answer_timeout", message)

    def _left_s(self) -> float | None:
        now = self._gateway.clock.now()
        if self._run.result is not None:
            return None
        if self._deadline is not None:
            return max(0.0, self._deadline - now)
        return max(0.0, self._run.due_at - now) + self._s_max
