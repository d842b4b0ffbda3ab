"""Patch of the Kafka client's group join: one request, a kept name, and a membership check."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import group_coordinator
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError
from aiokafka.protocol.group import JoinGroupRequest

from streams.kafka.group_members import member_named, word_of
from streams.kafka.process_name import this_process

BEAT_RETRY_S = 0.2
FAREWELL_S_MAX = 1.0
# Members announce themselves outside of rebalances, which take no longer than the rebalance
# timeout.
TOLD_S_MAX = 30.0
ASK_AGAIN_S = 0.2

logger = logging.getLogger(__name__)

# Clients that have been members: any earlier owner of the name has gone.
_MEMBERS: WeakSet[Any] = WeakSet()


class NameLostError(KafkaError):  # type: ignore[misc]
    """Another process is in the group under this one's name."""


class _JoinsOnce(group_coordinator.CoordinatorGroupRebalance):  # type: ignore[misc]
    """Joins with a single request, and never replaces another process of its name.

    aiokafka sends one request per assignor, each of which names one more than the one before
    (https://github.com/aio-libs/aiokafka/pull/1168). To the group the second is a change, and it
    rebalances again. Two members that get out of step by one request make each other rejoin for
    ever: routers that rebalanced for minutes (found by the chaos run).

    Nor does it tell a member that another has taken its name: it joins again, and so takes the name
    back, also for ever.
    """

    _assignors: Any

    async def perform_group_join(self) -> Any:
        """Join as the library does, with the first assignor, listing the others beside it.

        Raises:
            NameLostError: another process has the name that this one had.
        """
        coordinator = self._coordinator
        if coordinator in _MEMBERS and coordinator.member_id == JoinGroupRequest.UNKNOWN_MEMBER_ID:
            try:
                await _check_name(coordinator)
            except (NameLostError, GroupAuthorizationFailedError):
                raise
            except KafkaError:
                # The client looks it up, and joins, again.
                coordinator.coordinator_dead()
                return None
        every = _protocols(self._assignors, self._subscription.topics)
        send = coordinator._send_req  # noqa: SLF001 - the client has no other seam

        async def send_whole(request: Any) -> Any:
            if isinstance(request, JoinGroupRequest):
                request._group_protocols = every  # noqa: SLF001
            return await send(request)

        self._assignors = self._assignors[:1]
        coordinator._send_req = send_whole  # noqa: SLF001
        try:
            joined = await super().perform_group_join()
        finally:
            coordinator._send_req = send  # noqa: SLF001
        if joined is not None:
            _MEMBERS.add(coordinator)
        return joined


def join_once() -> None:
    """Make each member of this process join with a single request, and keep its name."""
    group_coordinator.CoordinatorGroupRebalance = _JoinsOnce


async def is_counted(consumer: AIOKafkaConsumer) -> bool:
    """Return whether the group still counts a member, whose session may have ended.

    This sends a heartbeat to the group's coordinator, once there is one.
    """
    coordinator = consumer._coordinator  # noqa: SLF001 - by itself the client beats once a second
    while coordinator.generation >= 0:
        await coordinator.ensure_coordinator_known()
        if await coordinator._do_heartbeat():  # noqa: SLF001
            return True
        await asyncio.sleep(BEAT_RETRY_S)
    return False


async def say_farewell(consumer: AIOKafkaConsumer) -> None:
    """Announce in the group that this member stops, and take no more part in it.

    It stays a member until its session ends, so that its partitions wait for a successor under its
    name; a successor on another host need not wait to see whether it still runs.
    """
    coordinator: Any = consumer._coordinator  # noqa: SLF001 - the client has no other seam
    was_member = coordinator.member_id != JoinGroupRequest.UNKNOWN_MEMBER_ID
    topics = consumer.subscription()
    # No heartbeat may notice the following, which is a successor's join to the broker.
    await coordinator.close()
    if not was_member:
        return
    request = JoinGroupRequest(
        coordinator.group_id,
        coordinator._session_timeout_ms,  # noqa: SLF001
        coordinator._rebalance_timeout_ms,  # noqa: SLF001
        JoinGroupRequest.UNKNOWN_MEMBER_ID,
        coordinator._group_instance_id,  # noqa: SLF001
        ConsumerProtocol.PROTOCOL_TYPE,
        _protocols(coordinator._assignors, topics, leaves=True),  # noqa: SLF001
    )
    # It is best effort, and a rebalancing group answers only when it is done.
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(FAREWELL_S_MAX):
            await coordinator._send_req(request)  # noqa: SLF001


def _protocols(
    assignors: Iterable[Any], topics: Iterable[str], *, leaves: bool = False
) -> list[tuple[str, bytes]]:
    """Return this process's assignors, with its announcement in each."""
    told = word_of(this_process(), leaves=leaves)
    metadata = ConsumerProtocol.METADATA(0, list(topics), told).encode()
    return [(each.name, metadata) for each in assignors]


async def _check_name(coordinator: Any) -> None:
    """Check that no other process has taken the name of a removed member.

    Raises:
        NameLostError: one has.
    """
    name = coordinator._group_instance_id  # noqa: SLF001 - the client has no other seam
    loop = asyncio.get_running_loop()
    end_at = loop.time() + TOLD_S_MAX
    while loop.time() < end_at:
        member = await member_named(coordinator._send_req, coordinator.group_id, name)  # noqa: SLF001
        if member is None or member.has_left or member.process == this_process():
            return
        if member.process is not None:
            raise NameLostError(
                f"{member.process} has taken the name {name!r} in {coordinator.group_id}; two"
                " processes of a kind need two names: give one another --instance"
                " (SHUNTER_INSTANCE)"
            )
        await asyncio.sleep(ASK_AGAIN_S)
