"""The findings of a run, as a Markdown document."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from faults import SESSION_S
from ledger import Ledger
from load import Load
from recovery import QUIET_S, SLOW_S, Span
from takeovers import Kill, Taken, takeover_s

from topics.embedded_broker.settings import SESSION_MS_OF_SEVERAL


@dataclass(frozen=True)
class Seen:
    """What came of a run."""

    load: Load
    ledger: Ledger
    spans: list[Span]
    kills: int
    killed: list[Kill]
    taken: list[Taken]
    held: int
    trail: list[str]
    began: float
    ended: float
    ends: Sequence[tuple[float, str]] = ()
    """Processes that ended by themselves, and when (epoch seconds)."""
    bare: Sequence[tuple[float, float]] = ()
    """When records of a plain client were due (epoch seconds), and how long each took."""


@dataclass(frozen=True)
class Ground:
    """What a run was on, and where in a document its tables go."""

    title: str
    told: tuple[str, ...]
    end: str
    tells_ends: bool = False
    """Whether processes that end by themselves are counted, where no one's fault is theirs."""
    takeover: str = ""
    """What else a takeover waits for."""


ONE_BROKER = Ground(
    "# What was done to it, and what was seen",
    (
        "Real processes on a real Kafka of one broker: two routers, two pools (and a third while",
        "it has its fault), a TCP proxy between broker and processes, mixed requests at a steady",
        "rate. Written by the run:",
    ),
    "<!-- end of what the run writes -->\n",
)
THREE_BROKERS = Ground(
    "## On three brokers",
    (
        "Real processes on a real Kafka of three brokers on one machine, each topic with three",
        "replicas of which two must have a record: two routers, two pools, a TCP proxy before",
        "each broker, mixed requests at a steady rate. Kafka takes a broker for dead after",
        f"{SESSION_MS_OF_SEVERAL / 1000:.0f} s; processes have their defaults. Written by the run:",
    ),
    "<!-- end of what the run on three brokers writes -->\n",
    tells_ends=True,
    takeover=(
        f" A dead broker has one, too, of {SESSION_MS_OF_SEVERAL / 1000:.0f} s,\nwhich the target"
        " contains: until then Kafka lets nobody lead what it led."
    ),
)
LOST_TAIL = replace(
    THREE_BROKERS,
    title="### A tail that is lost",
    told=(
        "The same, for the fault that Kafka itself doesn't survive: a partition of",
        "`inference.requests` with two replicas, of which one may acknowledge alone, and does.",
    ),
    end="<!-- end of what the run with the unclean election writes -->\n",
)


Row = tuple[str, ...]


def rows(seen: Seen, *, tells_ends: bool = False) -> list[Row]:
    """Return a row for each kind of fault: times, latency, what was not served, recovery."""
    return [_row(seen, n, spans, tells_ends=tells_ends) for n, spans in _by_name(seen.spans)]


def _by_name(spans: Sequence[Span]) -> list[tuple[str, list[Span]]]:
    names = dict.fromkeys(span.name for span in spans)
    return [(name, [span for span in spans if span.name == name]) for name in names]


def _row(seen: Seen, name: str, spans: Sequence[Span], *, tells_ends: bool) -> Row:
    each = [seen.ledger.took_s(seen.load, span.began, span.until) for span in spans]
    took = [took_s for _, took_s in chain.from_iterable(each)]
    served = [took_s for took_s in took if took_s < math.inf]
    median, worst = "none", "none"
    if served:
        median, worst = f"{statistics.median(served):.2f}", f"{max(served):.1f}"
    unserved = f"{len(took) - len(served):,}"
    ends = sum(any(s.began <= at <= s.until for s in spans) for at, _ in seen.ends)
    found = (name, str(len(spans)), median, worst, unserved, _recovery(spans, each))
    if not tells_ends:
        return found
    bare = [took for at, took in seen.bare if any(s.began <= at <= s.until for s in spans)]
    return (*found, str(ends), f"{max(bare):.1f}" if bare else "none")


def _recovery(spans: Sequence[Span], took: Sequence[list[tuple[float, float]]]) -> str:
    """Return the time from a fault's end to the last slow request after it, at worst.

    Where requests were slow for as long as was waited, it is longer than that.
    """
    if unfinished := [span.until - span.ended for span in spans if not span.is_calm]:
        return f"> {max(unfinished):.0f}"
    slow = (
        at - span.ended
        for span, each in zip(spans, took, strict=True)
        for at, took_s in each
        if took_s > SLOW_S
    )
    return f"{max(chain([0.0], slow)):.1f}"


def worst_rows(seen: Seen) -> list[Row]:
    """Return a row for each kind of fault: how far its slowest request was after how long."""
    found = []
    for name, spans in _by_name(seen.spans):
        each = [seen.ledger.worst(seen.load, span.began, span.until) for span in spans]
        if worst := max(each, key=lambda at: at[-1:]):
            found.append((name, *(f"{s:.1f}" for s in worst)))
    return found


def takeover_rows(seen: Seen) -> list[Row]:
    """Return a row for each kind of fault that kills somebody: times, median, worst, target."""
    found = []
    for name, spans in _by_name(seen.spans):
        kills = [k for k in seen.killed if any(s.began <= k.at <= s.ended for s in spans)]
        timed = [(took, k) for k in kills if (took := takeover_s(k, seen.taken)) is not None]
        if timed:
            lasted = [seconds for seconds, _ in timed]
            limit_s = max(kill.limit_s(SESSION_S) for _, kill in timed)
            verdict = "met" if max(lasted) <= limit_s else "not met"
            figures = (statistics.median(lasted), max(lasted))
            shown = ("never" if f == math.inf else f"{f:.1f}" for f in figures)
            found.append((name, str(len(timed)), *shown, f"{limit_s:.0f}", verdict))
    return found


def found_wrong(seen: Seen) -> list[str]:
    """Return what must not be."""
    found = seen.ledger.problems(seen.load) + seen.trail
    return [*found, f"{seen.held} requests are held for ever"] if seen.held else found


def document(seen: Seen, command: str, ground: Ground = ONE_BROKER) -> str:
    """Return the tables as a Markdown document."""
    return "\n".join([*_summary(seen, command, ground), *_tables(seen, ground), ground.end])


def write(path: Path, found: str, ground: Ground = ONE_BROKER) -> None:
    """Write a document over the older one of this ground; what else there is stays."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    older, end, after = text.partition(ground.end)
    before = older.partition(ground.title)[0] if end else older
    path.write_text(before + found + after, encoding="utf-8")


def _summary(seen: Seen, command: str, ground: Ground) -> list[str]:
    load, minutes = seen.load, (seen.ended - seen.began) / 60
    statuses = ", ".join(
        f"{n:,} {s or 'not known'}" for s, n in seen.ledger.statuses(load).most_common()
    )
    codes = ", ".join(f"{n:,} {code}" for code, n in seen.ledger.codes.most_common(8))
    return [
        ground.title,
        "",
        *ground.told,
        "",
        f"```sh\n{command}\n```",
        "",
        f"{len(load.published_at):,} requests in {minutes:.0f} minutes, {seen.kills:,} kills of",
        "processes: none lost, none doubled, no constraint broken by a placement or a result,",
        "nothing left in the hold, each end explained by its evidence. Besides,",
        f"{len(load.published_twice):,} requests came twice and {len(load.published_bad):,}",
        "records were no requests: each was told, once, as what it was. The client does not know",
        f"of {len(load.unsure):,} whether Kafka has them, or has them twice: these may be missing.",
        *_lost(seen),
        "",
        f"Ends: {statuses}.",
        "",
        f"Reasons of those not completed: {codes or 'none'}.",
        "",
    ]


def _lost(seen: Seen) -> list[str]:
    """Return what Kafka has lost itself, which is no one else's fault."""
    lost = seen.load.lost
    if not lost:
        return []
    served = seen.ledger.served_of(seen.load, lost)
    return [
        f"An unclean election lost {len(lost):,} records that Kafka had acknowledged;",
        f"{served:,} of them had been read before, and have their one result.",
    ]


def _tables(seen: Seen, ground: Ground) -> list[str]:
    head: Row = ("fault", "times", "median", "worst", "not served", "recovery")
    told: list[str] = []
    if ground.tells_ends:
        head = (*head, "ended", "bare")
        told = [
            "Ended is how many processes of Shunter ended by themselves. Bare is the worst record",
            "of a plain aiokafka beside it, one transactional producer and one committed reader,",
            "where a request of Shunter goes through two transactions and three topics.",
            "",
        ]
    return [
        "Latencies are of direct requests published from the beginning of the fault until they had",
        f"been served in time for {QUIET_S:.0f} s, from publishing to the last token, in seconds;",
        "the worst is that of the request that came at the worst moment. Not served are those that",
        "expired, failed or were rejected meanwhile. Recovery is the time from the end of the",
        f"fault to the last request that took more than {SLOW_S:.0f} s or was not served, at",
        "worst; with a >, requests were still late when no more was waited.",
        "",
        *told,
        *_table(head, rows(seen, tells_ends=ground.tells_ends)),
        *(_waits(seen) if ground.tells_ends else ()),
        *_takeovers(seen, ground),
    ]


def _waits(seen: Seen) -> list[str]:
    head: Row = ("the worst one", "acknowledged", "routed", "begun", "finished")
    return [
        "",
        "How far the worst of these was after how many seconds: Kafka had acknowledged it to its",
        "client, a router had decided, a worker had begun it, its last token was there.",
        "",
        *_table(head, worst_rows(seen)),
    ]


def _takeovers(seen: Seen, ground: Ground) -> list[str]:
    found = takeover_rows(seen)
    if not found:
        return []
    return [
        "",
        "Takeover is the time from a `kill -9` until the last of the partitions of the dead was",
        "taken over, in seconds: by itself where it was started again at once, else by another,",
        f"{SESSION_S:.0f} s of which are its session.{ground.takeover}",
        "",
        *_table(("takeover", "times", "median", "worst", "target", ""), found),
    ]


def _table(head: Row, found: Sequence[Row]) -> list[str]:
    rule = ("---", *("--:" for _ in head[1:]))
    return [f"| {' | '.join(row)} |" for row in (head, rule, *found)]
