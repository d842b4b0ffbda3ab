"""One real Kafka for each process of tests that wants it, and a topic prefix per test."""

import os
import re
import secrets
from collections.abc import Iterator
from zlib import crc32

import pytest

from topics.broker import EmbeddedBroker


# Before xdist looks at the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that need a Kafka in two processes, each with one of its own.

    They wait more than they work. Which of the two is by module, so that a run is like another.
    """
    for item in items:
        if item.get_closest_marker("kafka"):
            half = crc32(item.path.name.encode()) % 2
            item.add_marker(pytest.mark.xdist_group(f"kafka-{half}"))


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap servers of a real Kafka.

    An embedded one, or the one that SHUNTER_TEST_BOOTSTRAP_SERVERS names.
    """
    existing = os.environ.get("SHUNTER_TEST_BOOTSTRAP_SERVERS")
    if existing:
        yield existing
        return
    # The log cleaner looks every 15 s by default: too long for a test that waits for it.
    with EmbeddedBroker(properties={"log.cleaner.backoff.ms": "200"}) as broker:
        yield broker.bootstrap_servers


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A topic prefix that no other test has, telling which test made it."""
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", request.node.name)[:40].strip("-")
    return f"{name}-{secrets.token_hex(4)}"
