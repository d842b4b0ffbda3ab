"""Partitions whose readers are blocked by an open transaction.

A reader of committed records can't pass the oldest open transaction, whoever began it. Shunter's
own writers end theirs within the timeout. A client's transaction lasts as long as the client wants
and the brokers allow, or for ever if its end was lost. Lag doesn't show it: records that may not be
read yet are not counted.
"""

import asyncio
import logging
import shlex
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from streams.engine.clock import Clock
from streams.engine.log import Log, LogError, Partition
from streams.kafka.open_transactions import OpenTransaction
from streams.metrics import registry as m
from streams.metrics.gauges import Readings
from streams.service import Repeated

LOOK_EVERY_S = 5.0
ASK_S_MAX = 10.0
ASK_AGAIN_S = 60.0
TELL_AGAIN_S = 300.0
# Beyond the longest that brokers let a transaction be open: they look for such only so often.
OVERDUE_S = 60.0
ID_CHARACTERS_MAX = 200

logger = logging.getLogger(__name__)

FindOpen = Callable[[Collection[Partition]], Awaitable[Mapping[Partition, OpenTransaction]]]
"""Returns the oldest open transaction of each partition that has one."""


@dataclass(slots=True)
class _Block:
    """A partition whose last stable offset stands still, and since when."""

    stable_end: int
    since: float
    end: int
    asked_at: float | None = None
    told_at: float | None = None
    told_to_hang: bool = False


class BlockWatch:
    """Reports which partitions of this process a transaction blocks, which one, and the remedy.

    A blocked partition is detected from its readers' fetches; only then are brokers asked, once a
    minute.

    Args:
        logs: the members of groups in this process.
        find: asks the brokers.
        clock: measures how long it lasts.
        patience_s: longest that a transaction of Shunter's own may be open.
        servers: bootstrap servers, for the command that ends one.
    """

    def __init__(
        self,
        logs: Callable[[], Iterable[Log]],
        find: FindOpen,
        clock: Clock,
        *,
        patience_s: float,
        servers: str,
    ) -> None:
        self._logs = logs
        self._find = find
        self._clock = clock
        self._patience_s = patience_s
        self._servers = servers
        self._blocks: dict[Partition, _Block] = {}

    def gauges(self) -> Readings:
        """Yield how long the first blocked partition of each topic has been blocked."""
        now = self._clock.now()
        longest: dict[str, float] = {}
        for partition, block in self._blocks.items():
            if block.asked_at is not None:
                blocked_s = now - block.since
                longest[partition.topic] = max(blocked_s, longest.get(partition.topic, 0.0))
        for topic, blocked_s in longest.items():
            yield m.BLOCKED, (topic,), blocked_s

    async def look(self) -> None:
        """Check once, and ask brokers about partitions that have not moved for too long."""
        now = self._clock.now()
        self._update(now)
        due = [p for p, block in self._blocks.items() if self._is_due(block, now)]
        if not due:
            return
        for partition in due:
            self._blocks[partition].asked_at = now
        try:
            async with asyncio.timeout(ASK_S_MAX):
                found = await self._find(due)
        except (TimeoutError, KafkaError, LogError, OSError) as error:
            logger.warning(
                "%s: some records may not be read yet, and brokers do not tell whose transaction"
                " they wait for: %r",
                ", ".join(map(str, due)),
                error,
            )
            return
        for partition in due:
            self._judge(partition, found.get(partition), now)

    def _update(self, now: float) -> None:
        ends = {p: found for log in self._logs() for p, found in log.unstable().items()}
        before, self._blocks = self._blocks, {}
        for partition, (stable_end, end) in ends.items():
            block = before.get(partition)
            if block is not None and block.stable_end == stable_end:
                block.end = end
            else:
                block = _Block(stable_end, now, end)
            self._blocks[partition] = block
        for partition, block in before.items():
            if block.told_at is not None and self._blocks.get(partition) is not block:
                logger.info(
                    "%s is blocked at offset %d no longer, or is another process's; it was for"
                    " %.0f s",
                    *(partition, block.stable_end, now - block.since),
                )

    def _is_due(self, block: _Block, now: float) -> bool:
        if block.asked_at is not None:
            return now - block.asked_at >= ASK_AGAIN_S
        return now - block.since >= self._patience_s

    def _judge(self, partition: Partition, found: OpenTransaction | None, now: float) -> None:
        block = self._blocks[partition]
        if found is None or found.start_offset > block.stable_end:
            # It moves: its last fetch is old.
            self._blocks[partition] = _Block(block.stable_end, now, block.end)
            return
        overdue_s = (found.timeout_s_max or float("inf")) + OVERDUE_S
        hangs = found.hangs or (found.transactional_id is None and now - block.since > overdue_s)
        is_told = block.told_at is not None and now - block.told_at < TELL_AGAIN_S
        if is_told and block.told_to_hang == hangs:
            return
        block.told_at, block.told_to_hang = now, hangs
        written = "" if found.written_at is None else f", written to {now - found.written_at:.0f} s"
        logger.warning(
            "%s is blocked at offset %d, for %.0f s by now, and %d offsets may not be read yet:"
            " producer %d has had a transaction open since offset %d%s. %s",
            *(partition, block.stable_end, now - block.since, block.end - block.stable_end),
            *(found.producer_id, found.start_offset, written and f"{written} ago"),
            self._remedy(partition, found, now, hangs=hangs),
        )

    def _remedy(
        self, partition: Partition, found: OpenTransaction, now: float, *, hangs: bool
    ) -> str:
        """Return how a transaction will end by itself, and the command that ends it."""
        tool = f"kafka-transactions.sh --bootstrap-server {shlex.quote(self._servers)}"
        abort = (
            f"{tool} abort --topic {partition.topic} --partition {partition.number}"
            f" --start-offset {found.start_offset}"
        )
        if hangs:
            why = (
                "no coordinator tells of it and it is older than brokers let one be"
                if found.transactional_id is None
                else f"the coordinator of {_shown(found)} has it open no more"
            )
            return f"It hangs: {why}, and it never ends by itself; this ends it: {abort}"
        if found.transactional_id is None:
            at_most = "15 minutes by default"
            if found.timeout_s_max is not None:
                at_most = f"{found.timeout_s_max:g} s"
            return (
                "No coordinator tells this process of it. Either it hangs, or the brokers end it"
                f" after its timeout, at most transaction.max.timeout.ms ({at_most}); if it"
                f" outlasts that, this ends it: {abort}"
            )
        if _is_plain(found.transactional_id):
            quoted = shlex.quote(found.transactional_id)
            end = f"{tool} forceTerminateTransaction --transactionalId {quoted}"
        else:
            end = abort
        when = "soon" if found.ends_at is None else f"in {max(0.0, found.ends_at - now):.0f} s"
        return (
            f"Its client, transactional id {_shown(found)}, can still end it, and the brokers do"
            f" {when}; this ends it at once: {end}"
        )


def _is_plain(text: str) -> bool:
    """Return whether a client's text is safe in a command that somebody may copy."""
    return text.isascii() and text.isprintable() and len(text) <= ID_CHARACTERS_MAX


def _shown(found: OpenTransaction) -> str:
    return ascii((found.transactional_id or "")[:ID_CHARACTERS_MAX])


class BlockWatchService(Repeated):
    """Checks periodically, beside the stages."""

    def __init__(self, watch: BlockWatch) -> None:
        super().__init__(watch.look, LOOK_EVERY_S)
