"""How the client joins a group, mended: one request names all of its assignors; and if it is in."""

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import group_coordinator
from aiokafka.protocol.group import JoinGroupRequest

BEAT_RETRY_S = 0.2


class _JoinsOnce(group_coordinator.CoordinatorGroupRebalance):  # type: ignore[misc]
    """Joins with a single request.

    aiokafka sends one request for each assignor, each of which names one more than the one before
    (https://github.com/aio-libs/aiokafka/pull/1168). To the group the second is a change, and it
    rebalances again. Two members that get out of step by one request make each other rejoin for
    ever: routers that rebalanced for minutes (found by the chaos run).
    """

    _assignors: Any

    async def perform_group_join(self) -> Any:
        """Join as the library does, with the first assignor, and name the others beside it."""
        topics, coordinator = self._subscription.topics, self._coordinator
        every = [(each.name, each.metadata(topics).encode()) for each in self._assignors]
        send = coordinator._send_req  # noqa: SLF001 - the client has no other seam

        async def send_whole(request: Any) -> Any:
            if isinstance(request, JoinGroupRequest):
                request._group_protocols = every  # noqa: SLF001
            return await send(request)

        self._assignors = self._assignors[:1]
        coordinator._send_req = send_whole  # noqa: SLF001
        try:
            return await super().perform_group_join()
        finally:
            coordinator._send_req = send  # noqa: SLF001


def join_once() -> None:
    """Let each member of this process join with a single request."""
    group_coordinator.CoordinatorGroupRebalance = _JoinsOnce


async def is_counted(consumer: AIOKafkaConsumer) -> bool:
    """Tell whether the group still counts a member: one whose session has ended it does not.

    Asked by a heartbeat, of whichever broker coordinates the group once there is one.
    """
    coordinator = consumer._coordinator  # noqa: SLF001 - by itself the client beats once a second
    while coordinator.generation >= 0:
        await coordinator.ensure_coordinator_known()
        if await coordinator._do_heartbeat():  # noqa: SLF001
            return True
        await asyncio.sleep(BEAT_RETRY_S)
    return False
