"""Common parts of the chaos tests and the long run: how a system is kept up, what must hold."""

import asyncio
from collections.abc import Callable, Container, Iterable

from running_system import System

from shunter.audit.topic import verify_topic
from shunter.logs.reading import read_all
from streams.kafka.log import KafkaLog
from topics import Catalogue, Settings
from topics.admin.provisioning import partition_counts

TIMEOUTS = {"SHUNTER_SESSION_TIMEOUT_MS": "6000", "SHUNTER_TRANSACTION_TIMEOUT_MS": "3000"}
# Long enough that requests outlast a fault: at the speed of other tests a chat waits 1.5 s for a
# pool to come alive, less than a broker needs to come back.
POLICY_SPEED = 4.0
# The last step of a request, and the status that its result must have.
ENDS = {
    "cancelled": "cancelled",
    "executed": "completed",
    "expired": "expired",
    "rejected": "rejected",
    "failed": "failed",
}


async def supervise(
    system: System,
    resting: Container[str] = (),
    ended: Callable[[str], object] = lambda _name: None,
) -> None:
    """Start again what has ended by itself, as any supervisor does, but for what rests."""
    while True:
        for name, process in list(system.processes.items()):
            if name not in resting and process.poll() is not None:
                ended(name)
                system.start(name)
        await asyncio.sleep(0.3)


def amiss(name: str, results: int, status: str, ends: int, end: str) -> list[str]:
    """Return what is wrong with a request: it has one result and one end, and the two agree.

    ``status`` is that of its last result, ``end`` the one that its last step calls for.
    """
    if (results, ends) == (1, 1) and status == end:
        return []
    return [f"{name} has {results} results ({status}) and {ends} ends ({end})"]


def problems(system: System, ids: Iterable[str]) -> list[str]:
    """Return what is wrong with all that a system was given; nothing of it is a dead letter."""
    wanted = set(ids)
    found = [f"dead letter {letter.key!r}" for letter in system.dead_letters]
    ends: dict[str, list[str]] = {}
    for each in system.evidence:
        if each["step"] in ENDS:
            ends.setdefault(each["request_id"], []).append(ENDS[each["step"]])
    for name in sorted(wanted | system.results.keys() | ends.keys()):
        if name not in wanted:
            found.append(f"{name} was never published")
            continue
        statuses = [result["status"] for result in system.results.get(name, [])]
        of_it = ends.get(name, [])
        found += amiss(name, len(statuses), "".join(statuses[-1:]), len(of_it), "".join(of_it[-1:]))
    return found


async def grown(system: System, topic: str) -> Settings:
    """Return the settings with as many partitions as the topic has now: it may have grown."""
    counts = await partition_counts(system.settings, [topic])
    return system.settings.model_copy(update={"partitions": counts[topic]})


async def held_now(system: System) -> int:
    """Return the number of requests in the hold: keys whose newest record is no tombstone."""
    topic = system.catalogue.held
    settings = await grown(system, topic)
    held: dict[bytes | None, bool] = {}
    async for record in read_all(KafkaLog(settings), topic, settings.partitions):
        held[record.key] = record.value is not None
    return sum(held.values())


async def trail_problems(system: System) -> list[str]:
    """Return what an auditor finds wrong with the evidence that the system has left."""
    settings = await grown(system, system.catalogue.evidence)
    findings = await verify_topic(KafkaLog(settings), Catalogue(settings))
    return [f"trail: {p.kind} {p.where}: {p.message}" for p in findings.problems]
