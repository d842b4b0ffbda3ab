"""The sides of a comparison: processes that read the same requests and write as many records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from benchmarks.cluster_fixture import Ground
from benchmarks.workload import (
    REQUEST_BYTES,
    Yard,
    fleet_text,
    make_options,
    records_of,
    request_value,
)

# At most this many records of a partition in a transaction, as `SHUNTER_POLL_RECORDS_MAX` has it.
POLL_RECORDS = 100


@dataclass(frozen=True)
class Load:
    """The load published before the clock starts.

    Attributes:
        records: how many requests.
        bytes: of each.
        is_mixed: each pool serves three models, so that 10 options can serve a request, not 30.
        fields: of each request beside id and body.
    """

    records: int
    bytes: int = REQUEST_BYTES
    is_mixed: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    def fleet(self) -> str:
        """Return the fleet file."""
        return fleet_text(is_mixed=self.is_mixed)

    def written(self) -> tuple[int, int]:
        """Return the bytes of a request's evidence, and of the headers that the router adds."""
        yard = Yard(make_options(is_mixed=self.is_mixed))
        value = request_value(1, self.bytes, **self.fields)
        sent, evidence = yard.decide(records_of([value], yard.catalogue.requests)[0]).records
        return len(evidence.value or b""), sum(len(a) + len(b) for a, b in sent.headers)


@dataclass(frozen=True)
class Side:
    """One of those compared.

    Attributes:
        name: name in the output.
        start: starts its processes.
        package: what must be installed.
        members: of the routers' group, who share the partitions out before the backlog comes; 0
            starts on the backlog.
    """

    name: str
    start: Callable[[Ground, Load], None]
    package: str | None = None
    members: int = 0

    @property
    def is_installed(self) -> bool:
        """True if it can run here."""
        try:
            return self.package is None or bool(distribution(self.package))
        except PackageNotFoundError:
            return False


def shunter(
    name: str = "shunter", routers: int = 1, *, is_awaited: bool = False, **environment: str
) -> Side:
    """Return the real router, as users run it: router, batcher and canceller in one process.

    Args:
        name: name in the output.
        routers: processes of it.
        is_awaited: they share the partitions out before the backlog comes.
        environment: of the processes.
    """

    def start(here: Ground, load: Load) -> None:
        fleet = here.directory / f"{here.prefix}.yaml"
        fleet.write_text(load.fleet())
        for number in range(routers):
            here.start(
                "shunter",
                "router",
                SHUNTER_FLEET=str(fleet),
                SHUNTER_INSTANCE=f"router-{number}",
                SHUNTER_POLL_RECORDS_MAX=str(POLL_RECORDS),
                **environment,
            )

    return Side(name, start, members=routers if is_awaited else 0)


def bare(
    name: str = "bare loop",
    loops: int = 1,
    poll_records: int = POLL_RECORDS,
    written: tuple[int, int] | None = None,
) -> Side:
    """Return the bare loop, which copies as many bytes as the router writes of this load.

    Args:
        name: name in the output.
        loops: processes of it, which share the partitions out.
        poll_records: most records of a partition in a transaction.
        written: bytes of the second record and of the headers, where it isn't the router's.
    """

    def start(here: Ground, load: Load) -> None:
        evidence, headers = written or load.written()
        for number in range(loops):
            here.start(
                "benchmarks.contestants.bare_loop",
                here.servers,
                here.prefix,
                f"--evidence-bytes={evidence}",
                f"--header-bytes={headers}",
                f"--poll-records={poll_records}",
                f"--share={number}",
                f"--shares={loops}",
            )

    return Side(name, start)


def library(name: str, program: str, package: str) -> Side:
    """Return a program over another library."""

    def start(here: Ground, _: Load) -> None:
        here.start(f"benchmarks.contestants.{program}")

    return Side(name, start, package)


FAUST = library("Faust agent", "faust_forward", "faust-streaming")
QUIX = library("Quix Streams, exactly once", "quix_router", "quixstreams")
FASTSTREAM = library("FastStream, at least once", "faststream_router", "faststream")
