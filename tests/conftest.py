"""One real Kafka for each process of tests that wants it, and a topic prefix per test."""

import contextlib
import gc
import logging
import os
import re
import secrets
from collections.abc import Generator, Iterator

import pytest

from topics.embedded_broker.broker import BrokerError, EmbeddedBroker
from topics.embedded_broker.jvm import record_archive

# Of each property; the longer look is `make fuzz`.
EXAMPLES = 50
# Of the text that a case is named by: some texts are megabytes, and each process is sent all names.
NAME_CHARACTERS_MAX = 60
# Modules that make, load or import what is dear, once for a process: each keeps to one.
SHARED = ("test_backtest", "test_cpu", "test_documents", "test_shape", "test_tamper")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for little garbage, and for none among what is imported.

    That stays: to go through it again and again took a tenth of the tests' time.
    """
    from hypothesis import settings

    examples = int(os.environ.get("SHUNTER_FUZZ_EXAMPLES", str(EXAMPLES)))
    # A limit of the wall clock for each example is missed where other programs are busy.
    settings.register_profile("shunter", max_examples=examples, deadline=None)
    settings.load_profile("shunter")
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        gc.enable()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a case of a long text by its beginning."""
    if isinstance(val, str | bytes) and len(val) > NAME_CHARACTERS_MAX:
        return ascii(val[:NAME_CHARACTERS_MAX])
    return None


# Before xdist looks at the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module that need a Kafka in one process, which has one for all.

    They wait more than they work, and the longest modules come first (``--no-loadscope-reorder``).
    """
    items.sort(key=lambda item: "chaos" not in item.path.parts)
    for item in items:
        if item.get_closest_marker("kafka"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
        elif shared := next(filter(item.path.name.startswith, SHARED), None):
            item.add_marker(pytest.mark.xdist_group(shared))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have what Kafkas start with in half the time, once on a machine; each can do without."""
    if any(item.get_closest_marker("kafka") for item in session.items):
        with contextlib.suppress(BrokerError):
            record_archive()


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the locks of processes that tests start out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHUNTER_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """Undo what commands do to logging.

    They log to the standard error of their time. That of one in a thread is the process's meanwhile
    and ends with it, under a line that others log: such a line may be lost, and fails nobody.
    """
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    logging.raiseExceptions = False
    yield
    root.handlers, root.level, logging.raiseExceptions = handlers, level, raises


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
    with EmbeddedBroker(properties={"log.cleaner.backoff.ms": "1000"}) as broker:
        yield broker.bootstrap_servers


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A topic prefix that no other test has, telling which test made it."""
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", request.node.name)[:40].strip("-")
    return f"{name}-{secrets.token_hex(4)}"
