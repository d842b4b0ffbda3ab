"""Retries while a failure may pass: a broker that died, a leader election."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from streams.engine.log import Log, LogError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# If a cluster loses one broker another leads after its session, at most 18 s by Kafka's defaults; a
# lone broker that was killed is back in about 5 s.
PASSES_S_MAX = 60.0
RETRY_S = 0.3


class Limit:
    """The limit of tries that fail. It stands still while work with limits of its own is done."""

    _timeout: asyncio.Timeout

    @contextlib.asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Begin, and raise a TimeoutError when it is over."""
        async with asyncio.timeout(PASSES_S_MAX) as self._timeout:
            yield

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let no time pass meanwhile, once it has begun."""
        now, end_at = asyncio.get_running_loop().time, self._timeout.when()
        left_s = PASSES_S_MAX if end_at is None else end_at - now()
        self._timeout.reschedule(None)
        try:
            yield
        finally:
            self._timeout.reschedule(now() + left_s)


async def until_passed(
    log: Log, what: str, attempt: Callable[[], Awaitable[T]], limit: Limit | None = None
) -> T:
    """Return the result of the attempt, which may be retried.

    Raises:
        LogError: it did not succeed in time; or any error of the attempt that won't pass.
    """
    last: Exception | None = None
    try:
        async with (limit or Limit()).begun():
            while True:
                try:
                    return await attempt()
                except Exception as error:
                    if not log.is_passing(error):
                        raise
                    last = error
                    logger.warning("%s: %r; trying again", what, error)
                await asyncio.sleep(RETRY_S)
    except TimeoutError as error:
        raise LogError(f"{what}: not in {PASSES_S_MAX:g} s; {last!r}") from error
