"""Attempts: the time limit of a call, and retries at the same server."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from policies import Option
from policies.scoring.answers import Answers
from streams.engine.clock import Clock
from streams.engine.log import LogError
from streams.engine.unexpected_errors import is_asked_for, log_unexpected
from topics import Profile
from workers.backends.base import Backend, Call, CallError, Outcome
from workers.resilience.circuit_breaker import Breakers

# Tries at one server, the first included: after a connection refused for good they take 0.5 s, so
# that the next pool has the request within a second.
TRIES_HERE_MAX = 3
BACKOFF_S = 0.15
# A server that asks for more time than this is left for another.
AFTER_S_MAX = 10.0
# Work is not sent back before routers can have heard that the circuit is open.
NOTICE_S = 0.2
# A try should leave time for this many like it elsewhere.
RESERVED_TRIES = 2
# A stream whose client has pieces of it goes on beyond its share while they are no further apart: a
# try elsewhere would begin again, and could give the client nothing but half an answer.
STALLED_S = 1.0


def limit_s(profile: Profile, option: Option, now: float, attempts_max: int) -> float:
    """Return the time limit of a try, in seconds.

    The last try has all the time left to the deadline. Any other leaves twice the roofline time of
    a try elsewhere, but has at least half of the time left.
    """
    left_s = profile.deadline - now
    if profile.attempt >= attempts_max:
        return left_s
    return max(left_s / 2, left_s - RESERVED_TRIES * service_s(profile, option))


def service_s(profile: Profile, option: Option) -> float:
    """Return the hardware's time in a full batch by its roofline, in seconds."""
    roofline, places, found = option.roofline, option.max_batch, Answers.of(profile)
    decode_s = roofline.decode_s(profile.output_tokens, places, profile.prompt_tokens)
    rounds = -(-found.count // places)
    return (found.prefill_s(roofline) + rounds * decode_s) / option.time_scale


class Attempts:
    """Runs calls at one backend with a time limit, and retries where that helps.

    ``attempts_max`` is that of the policy in force.
    """

    def __init__(
        self,
        backend: Backend,
        breakers: Breakers,
        clock: Clock,
        *,
        attempts_max: int,
        uniform: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._breakers = breakers
        self._clock = clock
        self.attempts_max = attempts_max
        self._uniform = uniform

    def is_closed(self, variant: str) -> bool:
        """Return True if the variant's circuit allows calls."""
        return self._breakers.state(variant) == "closed"

    async def run(self, call: Call, option: Option) -> Outcome:
        """Run a call until it has its answer or has used up its share of the slack.

        Raises:
            CallError: the cause of its end; ``here`` then means the same as ``elsewhere``.
        """
        loop, now = asyncio.get_running_loop(), self._clock.now()
        limit = limit_s(call.profile, option, now, self.attempts_max)
        began_at = loop.time()
        deadline_at = began_at + call.profile.deadline - now
        scope = asyncio.timeout_at(began_at + limit)
        try:
            async with scope:
                return await self._try(_extending(call, scope, deadline_at), began_at + limit)
        except TimeoutError as error:
            # One that had no chance from the start says nothing of the server.
            if limit >= service_s(call.profile, option):
                self._breakers.failed(option.variant)
            took_s = loop.time() - began_at
            message = f"no answer within {took_s:.1f} s, its share of the time to the deadline"
            raise CallError("timeout", message, retry="elsewhere") from error

    async def _try(self, call: Call, end_at: float) -> Outcome:
        variant = call.placement.model_variant
        loop = asyncio.get_running_loop()
        for tries in range(1, TRIES_HERE_MAX + 1):
            if not self.is_closed(variant):
                await asyncio.sleep(NOTICE_S)
                message = f"{variant} has failed here before; nothing is sent until a probe passes"
                raise CallError("circuit_open", message, retry="elsewhere")
            try:
                outcome = await self._backend.execute(call)
            except CallError as failed:
                error = failed
            except LogError:
                raise
            except (Exception, asyncio.CancelledError) as defect:
                if is_asked_for(defect):
                    raise
                # No request ends a worker, or stays open because nobody cancelled it.
                log_unexpected(defect, f"the backend of {call.placement.pool} failed on a request")
                message = f"the backend raised {type(defect).__name__}, which no backend should"
                error = CallError("backend_defect", message, retry="elsewhere", is_pool_fault=True)
            else:
                self._breakers.succeeded(variant)
                return outcome
            self._count(variant, error)
            wait_s = error.after_s
            if wait_s is None:
                wait_s = BACKOFF_S * 2 ** (tries - 1) * (0.5 + self._uniform())
            is_worth_it = wait_s <= AFTER_S_MAX and loop.time() + wait_s < end_at
            if error.retry != "here" or tries == TRIES_HERE_MAX or not is_worth_it:
                raise error
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _count(self, variant: str, error: CallError) -> None:
        if error.is_pool_fault:
            self._breakers.failed(variant)
        elif error.retry == "never":
            self._breakers.succeeded(variant)


def _extending(call: Call, scope: asyncio.Timeout, deadline_at: float) -> Call:
    """Return a call whose pieces for a client extend the time of its try, up to the deadline."""
    tell = call.tell
    if tell is None:
        return call
    loop = asyncio.get_running_loop()

    async def extend(chunk: dict[str, Any]) -> None:
        await tell(chunk)
        end_at = scope.when()
        if end_at is not None and not scope.expired():
            scope.reschedule(max(end_at, min(deadline_at, loop.time() + STALLED_S)))

    return replace(call, tell=extend)
