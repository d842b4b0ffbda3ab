"""The trace, published as it arrived."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from shunter.demo.trace import TraceRow
from topics import Catalogue, Settings, encode

ACKNOWLEDGED_S_MAX = 30.0


async def replay(
    settings: Settings,
    requests: Sequence[tuple[TraceRow, Mapping[str, Any]]],
    speed: float,
    acknowledged: Callable[[str], object],
) -> None:
    """Publish each request when it is due, ``speed`` times as fast as it arrived.

    Returns once all are acknowledged. Nothing waits for an acknowledgement before the next request
    is due, so a burst stays a burst.

    Args:
        settings: where to.
        requests: by arrival.
        speed: the trace's seconds in one of ours.
        acknowledged: receives the id of each that Kafka has.

    Raises:
        KafkaError: Kafka refuses a request.
        TimeoutError: it does not acknowledge.
    """
    topic = Catalogue(settings).requests
    loop = asyncio.get_running_loop()
    async with AIOKafkaProducer(
        **settings.kafka_options(), acks="all", enable_idempotence=True
    ) as producer:
        waiting = []
        began_at = loop.time() - requests[0][0].arrival_s / speed
        for row, request in requests:
            early_s = began_at + row.arrival_s / speed - loop.time()
            if early_s > 0:
                await asyncio.sleep(early_s)
            future = await producer.send(
                topic, encode(request), key=(row.session or row.id).encode()
            )
            future.add_done_callback(_told(row.id, acknowledged))
            waiting.append(future)
        async with asyncio.timeout(ACKNOWLEDGED_S_MAX):
            await asyncio.gather(*waiting)


def _told(
    name: str, acknowledged: Callable[[str], object]
) -> Callable[["asyncio.Future[object]"], None]:
    def tell(future: "asyncio.Future[object]") -> None:
        if not future.cancelled() and future.exception() is None:
            acknowledged(name)

    return tell
