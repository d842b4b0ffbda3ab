"""Retries while a failure may pass: a broker that died, a leader election."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streams.engine.log import Log, LogError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# If a cluster loses one broker another leads after its session, at most 18 s by Kafka's defaults; a
# lone broker that was killed is back in about 5 s.
PASSES_S_MAX = 60.0
RETRY_S = 0.3


async def until_passed(log: Log, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Return the result of the attempt, which may be retried.

    Raises:
        LogError: it did not succeed in time; or any error of the attempt that won't pass.
    """
    last: Exception | None = None
    try:
        async with asyncio.timeout(PASSES_S_MAX):
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
