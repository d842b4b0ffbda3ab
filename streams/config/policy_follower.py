"""Follow the policies: every router adopts an applied policy without a restart."""

import logging
from collections.abc import Awaitable, Callable, Collection

from policies import DeclarationError
from streams.config.active_policy import ActivePolicy
from streams.config.declarations import Declarations, declared_by
from streams.engine.clock import Clock
from streams.engine.log import Record
from streams.kafka.follower import TopicFollower
from topics import BadRecordError, Catalogue, PolicyChange, PolicyLog, Settings
from topics.admin.provisioning import AdminError

logger = logging.getLogger(__name__)

# Interval before missing topics of a pool, or an unreachable cluster, are checked again.
AGAIN_S = 10.0

Check = Callable[[Collection[str]], Awaitable[object]]
"""Checks that the topics of these pools exist, or raises AdminError."""


class PolicyFollower(TopicFollower):
    """Puts in force the newest usable change; unusable ones are reported and ignored.

    The declarations that the process was started with fill what the topic leaves open.
    """

    def __init__(
        self,
        settings: Settings,
        active_policy: ActivePolicy,
        own: Declarations,
        check: Check,
        clock: Clock,
    ) -> None:
        super().__init__(settings, Catalogue(settings).policies)
        self._topic = Catalogue(settings).policies
        self._active_policy = active_policy
        self._own = own
        self._check = check
        self._clock = clock
        self._said = PolicyLog()
        self._settled: PolicyChange | None = None
        self._refused: set[PolicyChange] = set()
        self._awaited: set[PolicyChange] = set()
        self._again_at = 0.0
        self._is_current = False

    async def start(self) -> None:
        """Read the existing records, and put the newest usable one in force."""
        await super().start()
        self._is_current = True
        await self.settle()

    async def step(self, timeout_s: float) -> None:
        """Process new records."""
        await super().step(timeout_s)
        # Changes in between, before this process began, were never in force here.
        if self._is_current:
            await self.settle()

    def take(self, record: Record) -> None:
        """Process a record; one of a newer version is ignored as a whole."""
        try:
            self._said.add(record.value)
        except BadRecordError as error:
            logger.warning(
                "record %d of %s is refused, and %s stays: %s; does it come from a newer Shunter?",
                record.offset,
                self._topic,
                self._stands(),
                error.message,
            )

    async def settle(self) -> None:
        """Put the newest usable change in force, if it isn't yet.

        So a starting router has the same state as those that were running all the time.
        """
        if self._clock.now() < self._again_at:
            return
        for change in reversed(self._said.changes):
            if change is self._settled:
                return
            if change not in self._refused and await self._put_in_force(change):
                self._settled = change
                return

    async def _put_in_force(self, change: PolicyChange) -> bool:
        try:
            declared = declared_by(self._said, change, self._own)
            known = self._active_policy.situation.options.by_pool
            await self._check([pool for pool in declared.fleet.pools if pool not in known])
            self._active_policy.change(declared)
        except DeclarationError as error:
            self._refused.add(change)
            problems = str(error).replace("\n", "; ")
            logger.warning(
                "change %d of %s is refused, and %s stays: %s",
                *(change.number, self._topic, self._stands(), problems),
            )
            return False
        except AdminError as error:
            if change not in self._awaited:
                self._awaited.add(change)
                logger.warning(
                    "change %d of %s can't be made yet, and %s stays: %s",
                    *(change.number, self._topic, self._stands(), error),
                )
            self._again_at = self._clock.now() + AGAIN_S
            return False
        logger.info(
            "%s is in force: change %d, %s by %s",
            *(self._stands(), change.number, change.action, change.by),
        )
        return True

    def _stands(self) -> str:
        evidence_writer = self._active_policy.terms.evidence_writer
        return f"policy {evidence_writer.policy_version} with fleet {evidence_writer.fleet_version}"
