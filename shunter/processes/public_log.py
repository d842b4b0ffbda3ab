"""Assemble `shunter evidence log`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mode import Service
from prometheus_client import CollectorRegistry

from shunter.public_log.publisher import PublicLog
from shunter.public_log.store import LogStoreError, open_store
from shunter.public_log.witnesses import Witnesses
from streams.engine.clock import Clock, SystemClock
from streams.engine.log import Log
from streams.hosting.services import run_app
from streams.kafka.log import KafkaLog
from streams.metrics import registry as m
from streams.metrics.gauges import Gauges, Readings
from streams.metrics.process import page_of
from streams.service import QuietService
from topics import Catalogue, Settings
from topics.public_log.notes import NoteError, NoteKey, parse_note_key
from topics.public_log.policy import parse_policy
from topics.signing.key_files import check_key_file

logger = logging.getLogger(__name__)


class PublicLogService(QuietService):
    """Repeats the rounds of a log. What passes is waited for; a fork that threatens ends it."""

    def __init__(self, public: PublicLog, log: Log, clock: Clock, every_s: float) -> None:
        super().__init__()
        self._public = public
        self._log = log
        self._clock = clock
        self._every_s = every_s
        self._failing_since: float | None = None

    @Service.task  # type: ignore[untyped-decorator]
    async def _run(self) -> None:
        while not self.should_stop:
            await self.step()
            await self.sleep(self._every_s)

    async def step(self) -> None:
        """Make a round; where it fails for a while, remember since when.

        Raises:
            LogForkError: to go on could sign a second tree.
        """
        began = self._clock.now()
        try:
            await self._public.round()
            self._failing_since = None
        except Exception as error:
            if not isinstance(error, LogStoreError) and not self._log.is_passing(error):
                logger.critical("the public log can't go on: %s", error)
                raise
            if self._failing_since is None:
                self._failing_since = began
            logger.warning("the public log waits: %s", error)

    def readings(self) -> Readings:
        """Yield the gauges. Lag counts from the first round that failed, too: roots may wait."""
        state, now = self._public.state, self._clock.now()
        yield m.LOGGED_ROOTS, ("appended",), state.size
        yield m.LOGGED_ROOTS, ("published",), state.published
        failing = 0.0 if self._failing_since is None else now - self._failing_since
        yield m.LOG_LAG, (), max(state.lag_s(now), failing)
        witnesses = self._public.witnesses
        for name, witness in witnesses.policy.witnesses.items():
            if witness.url:
                yield m.LOG_COSIGNED, (name,), float(name in witnesses.cosigned)


def make_public_log(settings: Settings, log: Log, clock: Clock) -> PublicLog:
    """Return the log that the settings name, which nothing was done with yet.

    Raises:
        NoteError: the key or the policy can't be used, or don't fit each other.
        LogStoreError: it can't stand there.
        OSError: a file can't be read, or others may read the key.
        KeyFileError: others may read the key.
    """
    url, key_file = settings.public_log, settings.public_log_key
    policy_file = settings.public_log_policy
    if url is None or key_file is None or policy_file is None:
        raise NoteError(
            "name the log, its key and its policy: --to, --key and --policy, or SHUNTER_PUBLIC_LOG,"
            " SHUNTER_PUBLIC_LOG_KEY and SHUNTER_PUBLIC_LOG_POLICY"
        )
    key = load_note_key(key_file)
    policy = parse_policy(policy_file.read_bytes())
    if key.verifier not in policy.logs:
        raise NoteError(f"{policy_file} does not name this log; add: log {key.verifier.text}")
    unreachable = {name for name, witness in policy.witnesses.items() if witness.url is None}
    if not policy.is_met(policy.witnesses.keys() - unreachable):
        raise NoteError(
            f"{policy_file}: witnesses with a URL are no quorum; without one are"
            f" {', '.join(sorted(unreachable))}"
        )
    store = open_store(url)
    return PublicLog(log, Catalogue(settings), store, key, Witnesses(policy), clock)


def load_note_key(path: Path) -> NoteKey:
    """Return the key of a file.

    Raises:
        NoteError: it holds none.
        KeyFileError: others may read it.
        OSError: it can't be read.
    """
    check_key_file(path)
    try:
        return parse_note_key(path.read_text("utf-8"))
    except ValueError as error:
        raise NoteError(f"{path}: {error}; `shunter evidence log-keygen` makes one") from error


def run_public_log(settings: Settings) -> NoReturn:
    """Write the log until stopped.

    Raises:
        NoteError, LogStoreError, OSError, KeyFileError: as ``make_public_log``.
    """
    log, clock = KafkaLog(settings), SystemClock()
    public = make_public_log(settings, log, clock)
    service = PublicLogService(public, log, clock, settings.public_log_every_s)
    run_app("evidence-log", settings, [service], metrics=_page(service.readings))


def _page(readings: Callable[[], Readings]) -> Callable[[str], tuple[str, bytes]]:
    gauges, registry = Gauges(), CollectorRegistry(auto_describe=False)
    gauges.read_from(readings)
    registry.register(gauges)
    return lambda accept: page_of(registry, accept)
