"""Resources of a run: processor time of its processes and of the broker, kept with raw results."""

import math
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster_fixture import Ground, Pace
from topics.embedded_broker.broker import EmbeddedBroker


@dataclass(frozen=True)
class Used:
    """Resources of one run of a side while its requests came, without its start.

    Attributes:
        side: whose run it was.
        bytes: of a request.
        per_s: requests per second.
        process_us: processor time of each process, for a request of all.
        broker_us: that of the broker.
        process_cores: the same as shares of a core.
        broker_cores: cores of the broker.
        page_faults: pages of memory that the processes were given anew, for a request.
    """

    side: str
    bytes: int
    per_s: float
    process_us: tuple[float, ...]
    broker_us: float
    process_cores: tuple[float, ...]
    broker_cores: float
    page_faults: float

    @classmethod
    def of(cls, side: str, size: int, pace: Pace) -> "Used":
        """Return the resources used at a pace that `meter` metered."""
        *processes_s, broker_s, faults = pace.used
        requests = pace.per_s * pace.seconds
        return cls(
            side,
            size,
            pace.per_s,
            tuple(each * 1e6 / requests for each in processes_s),
            broker_s * 1e6 / requests,
            tuple(each / pace.seconds for each in processes_s),
            broker_s / pace.seconds,
            faults / requests,
        )

    @property
    def us(self) -> float:
        """Processor time of all its processes for a request, in microseconds."""
        return sum(self.process_us)

    def as_json(self) -> dict[str, Any]:
        """Return the values for programs; None if the system doesn't report one."""
        return {name: _rounded(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"{self.side}: {self.per_s:,.0f}/s; a request takes {self.us:.0f} us and the broker"
            f" {self.broker_us:.0f}; cores {_sum(self.process_cores)}, broker"
            f" {self.broker_cores:.2f}"
        )


def meter(here: Ground, broker: EmbeddedBroker) -> Callable[[], tuple[float, ...]]:
    """Return a meter of the processor time of each process and of the broker, and page faults."""

    def read() -> tuple[float, ...]:
        faults = sum(map(faults_of, here.processes))
        return (*map(cpu_s_of, here.processes), cpu_s_of(broker), faults)

    return read


def cores(runs: Sequence[Used], side: str) -> str:
    """Return the cores used by each process of a side and the broker, as medians of its runs."""
    found = [run for run in runs if run.side == side]
    processes = zip(*(run.process_cores for run in found), strict=True)
    broker = statistics.median(run.broker_cores for run in found)
    return f"{_sum([statistics.median(each) for each in processes])}, broker {broker:.2f}"


def transaction_us(runs: Sequence[Used], few: tuple[str, int], many: tuple[str, int]) -> float:
    """Return a transaction's time besides its requests, in microseconds of a process.

    Args:
        runs: of two sides that differ in nothing else than the records in a transaction.
        few: name of a side, and the records in each transaction of it.
        many: the same of the other.
    """
    (each_few, each_many) = (
        statistics.median(run.us for run in runs if run.side == side) for side, _ in (few, many)
    )
    return (each_few - each_many) / (1 / few[1] - 1 / many[1])


def cpu_s_of(process: subprocess.Popen[bytes] | EmbeddedBroker) -> float:
    """Return the processor time of a process, where Linux reports it."""
    if process.pid is not None:
        with suppress(OSError):
            # The clock of another process, numbered as clock_getcpuclockid(3) numbers it.
            return time.clock_gettime(~process.pid << 3 | 2)
    return math.nan


def faults_of(process: subprocess.Popen[bytes]) -> float:
    """Return the page faults of a process, where Linux reports them."""
    with suppress(OSError):
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        return float(stat.rpartition(")")[2].split()[7])
    return math.nan


def _sum(shares: Sequence[float]) -> str:
    return " + ".join(f"{share:.2f}" for share in shares)


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value
