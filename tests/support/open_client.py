"""A client on librdkafka that begins a transaction, writes to a partition, and hangs."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

_PROGRAM = """
import sys, time
from confluent_kafka import Producer

servers, topic, name, timeout_ms = sys.argv[1:]
producer = Producer(
    {
        "bootstrap.servers": servers,
        "transactional.id": name,
        "transaction.timeout.ms": int(timeout_ms),
    }
)
producer.init_transactions(60)
producer.begin_transaction()
producer.produce(topic, b"{}", b"open", 0)
producer.flush(60)
print("open", flush=True)
time.sleep(600)
"""


@contextlib.asynccontextmanager
async def client_that_hangs(
    servers: str, topic: str, name: str, timeout_ms: int
) -> AsyncIterator[None]:
    """Have a transaction open on partition 0 of a topic, left by a client that is killed then."""
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _PROGRAM, servers, topic, name, str(timeout_ms)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdout is not None
    try:
        async with asyncio.timeout(90):
            assert await client.stdout.readline() == b"open\n"
        client.kill()
        await client.wait()
        yield
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()


def take_over(servers: str, name: str) -> None:
    """End what a client of this transactional id has left open, as its next start does."""
    from confluent_kafka import Producer

    Producer({"bootstrap.servers": servers, "transactional.id": name}).init_transactions(60)
