"""The load that this machine carries, measured through the whole path, and the tempo by it.

Processor time does not shrink with the replay's times (docs/decisions/0007): at a multiple of the
trace's speed everybody has that much less time, while a burst takes as long as before to go through
Kafka, the router and the workers. So the demo sends a burst of its own first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies import Fleet, Policy
from shunter.demo.trace import PLACEHOLDER, TraceRow

# As many as the trace has embeddings within a quarter of a second.
PROBES = 240
PROBE_WINDOW = "60s"
# What a lone request takes on its way, in seconds of ours; half of them take 0.04 s on two cores.
PATH_S = 0.05
# Of the requests, so many are to come through the bursts in time: half of what may miss then
# remains for all that the measure does not see.
EXPECTED_MIN = 0.995
# The trace is carried at this part of a burst's rate: its requests are longer, and fewer share a
# transaction. Two cores that took a burst at 1,115/s kept 98.4 % at 4 times the speed of the trace,
# which one queue of 300/s keeps too.
MIXED_SHARE = 0.27


@dataclass(frozen=True, slots=True)
class Tempo:
    """The trace's seconds in one of ours, and the share of its requests that are sent."""

    speed: float
    share: float = 1.0


# The processes are started for this one; another speed needs them anew.
USUAL = Tempo(4.0)
# From the most to the least demanding. A demo is to end within two minutes of nothing on a slow
# machine too, and half as fast takes a minute more: so fewer requests come before less speed.
TEMPOS = (
    USUAL,
    Tempo(4.0, 0.75),
    Tempo(4.0, 0.5),
    Tempo(4.0, 0.35),
    Tempo(4.0, 0.25),
    Tempo(4.0, 0.2),
    Tempo(3.0, 0.2),
    Tempo(2.0, 0.2),
    Tempo(1.0, 0.2),
)
# Where the user says how many requests.
WHOLE_TEMPOS = (USUAL, Tempo(3.0), Tempo(2.0), Tempo(1.0))


@dataclass(frozen=True, slots=True)
class Measure:
    """A burst of ``requests`` that went through the whole path in ``took_s``."""

    requests: int
    took_s: float

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.took_s

    @property
    def mixed_per_s(self) -> float:
        """Requests a second of the trace's mixture."""
        return MIXED_SHARE * self.per_s


@dataclass(frozen=True, slots=True)
class Choice:
    """The tempo chosen, its rows, and the share of them expected within their limits."""

    tempo: Tempo
    rows: list[TraceRow]
    expected: float


def choose(
    rows: Sequence[TraceRow], policy: Policy, per_s: float, tempos: Sequence[Tempo] = TEMPOS
) -> Choice:
    """Return the most demanding tempo that this machine keeps up with; the least if it keeps none.

    Args:
        rows: the trace, by arrival.
        policy: at the speed of the trace.
        per_s: requests of the mixture that the machine carries, of a `Measure`.
        tempos: those to choose from, one at least.
    """
    for tempo in tempos:
        some = thinned(rows, tempo.share)
        expected = expected_share(some, policy, tempo.speed, per_s)
        if expected >= EXPECTED_MIN:
            break
    return Choice(tempo, some, expected)


def expected_share(rows: Sequence[TraceRow], policy: Policy, speed: float, per_s: float) -> float:
    """Return the share of requests that are through in time, if all pass one queue in turn.

    In time is before the first token is due, or the answer where nobody waits for a first token.
    What the simulated devices take comes on top, as it would at any speed.
    """
    free_at, kept = 0.0, 0
    for row in rows:
        arrival_s = row.arrival_s / speed
        free_at = max(free_at, arrival_s) + 1.0 / per_s
        workload = policy.classes[row.task]
        limit_s = workload.deadline_s
        if workload.latency_sensitive and workload.ttft_ms is not None:
            limit_s = workload.ttft_ms / 1000
        kept += free_at - arrival_s + PATH_S <= limit_s / speed
    return kept / len(rows)


def thinned(rows: Sequence[TraceRow], share: float) -> list[TraceRow]:
    """Return this share of the rows, one at least, evenly spread."""
    count = max(1, round(len(rows) * share))
    return [rows[index * len(rows) // count] for index in range(count)]


def probes(fleet: Fleet, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the requests of a burst: embeddings, in turn for each pool that serves some.

    Their devices take next to no time, and nothing is learned from them of how long replies are.
    """
    able = [
        (pool, served.model)
        for pool, declared in fleet.pools.items()
        if "direct" in declared.lanes
        for served in declared.serves
        if fleet.models[served.model].operations[0] == "embeddings"
    ]
    for number in range(PROBES if able else 0):
        pool, model = able[number % len(able)]
        yield {
            "id": f"{name}-{number}",
            "url": "/v1/embeddings",
            "body": {"model": model, "input": PLACEHOLDER},
            "task": "embedding",
            "completion_window": PROBE_WINDOW,
            "constraints": {"pools": [pool]},
            "hints": {"batchable": False},
        }


def told(measure: Measure, choice: Choice, requests: int) -> str:
    """Return what was measured and what was chosen, in words.

    Args:
        measure: of this machine.
        choice: that was made by it.
        requests: of the trace.
    """
    rows, speed = len(choice.rows), choice.tempo.speed
    some = f"all {rows:,} requests" if rows == requests else f"{rows:,} of {requests:,} requests"
    pace = f"{speed:g} times as fast as they arrived" if speed != 1 else "as fast as they arrived"
    keeps = "" if choice.expected >= EXPECTED_MIN else "; it keeps up with no less"
    return (
        f"This machine carries {measure.per_s:.0f} requests/s: {measure.requests} at once were"
        f" answered in {measure.took_s:.2f} s, and of the trace's mixture it takes"
        f" {measure.mixed_per_s:.0f}. So {some} are sent, {pace}:"
        f" {choice.expected:.1%} of them are expected to get through its bursts in time{keeps}."
    )
