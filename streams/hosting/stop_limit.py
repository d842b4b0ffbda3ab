"""The limit of a stop: a process that was told to end does so, whatever the brokers do."""

import logging
import os
import threading
from collections.abc import Callable

from streams.hosting.readiness import silence_told
from streams.kafka.broker_loss import silent_s

# Beyond what it may still work on: transactions under way, the last word to the groups, the close
# of connections. Supervisors have to wait for longer (docs/operations.md).
STOP_S_MAX = 12.0
# A lone broker that is restarted answers again sooner; one that doesn't takes nothing more.
SILENT_S_MAX = 8.0
LOOK_EVERY_S = 0.2

logger = logging.getLogger(__name__)


def limit_stop(now: Callable[[], float], work_s_max: float = 0.0) -> None:
    """End this process with status 0 if its orderly stop, which begins now, takes too long.

    Its successor finds what ``kill -9`` leaves: it fences, and goes on at the progress.

    Args:
        now: a clock that is not set, in seconds.
        work_s_max: how long the process may go on with what it has, in seconds.
    """
    threading.Thread(target=_watch, args=[now, STOP_S_MAX + work_s_max], daemon=True).start()


def _watch(now: Callable[[], float], s_max: float) -> None:
    began, pause = now(), threading.Event()
    while not pause.wait(LOOK_EVERY_S):
        waited = now() - began
        # A silence of before counts from now on: the broker may be about to come back.
        silence = min(silent_s(), waited)
        if silence >= SILENT_S_MAX:
            reason = silence_told(silence)
        elif waited >= s_max:
            reason = f"its parts have not stopped in {waited:.0f} s"
        else:
            continue
        logger.warning("%s; the process ends, its successor aborts what it left open", reason)
        os._exit(0)
