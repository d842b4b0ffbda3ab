"""Stories: each request ends once, and never where its constraints forbid."""

from typing import NamedTuple

from shunter.audit.findings import Findings
from shunter.audit.results import Results
from shunter.audit.terms import GRACE_S
from streams.evidence.projection import AskedStep, SeenEnvelope, SeenPlacement
from topics import BACKGROUND_TASK
from topics.iso_time import iso_time
from topics.records.evidence import ENDS

_ROUTED = frozenset({"placed", "held", "failed", "expired", "rejected"})


class _Limits(NamedTuple):
    """The limits in a profile that a placement can break."""

    regions: tuple[str, ...] | None
    precisions: tuple[str, ...] | None
    pools: tuple[str, ...] | None
    exclude_pools: tuple[str, ...]
    max_cost_usd: float | None


class _Story:
    __slots__ = ("accepted", "dead", "deadline", "ended", "limits")

    def __init__(self) -> None:
        self.accepted = 0
        self.ended = 0
        self.dead = 0
        self.deadline: float | None = None
        self.limits: tuple[_Limits, ...] = ()


class Stories:
    """The state of each request, and its faults."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.results: Results | None = None
        """Takes the ends, if results are to be compared."""
        self._stories: dict[str, _Story] = {}
        self._limits: dict[_Limits, _Limits] = {}

    def add(self, seen: AskedStep, where: str) -> None:
        """Add a step, in the order of its partition."""
        story = self._stories.get(seen.request_id)
        if story is None:
            story = self._stories[seen.request_id] = _Story()
        topic, step = seen.source.topic, seen.step
        story.accepted += step in _ROUTED and _is_ingested(seen)
        if step in ENDS:
            story.ended += 1
            if self.results is not None:
                self.results.ended(seen)
        elif step == "dead_lettered" and not topic.endswith(".requests"):
            story.dead += 1
        # A later attempt's additional exclusions are no wish of the client.
        wanted = seen.profile
        if wanted is not None and seen.attempt == 1:
            story.deadline = max(wanted.deadline, story.deadline or wanted.deadline)
            limits = _Limits(
                wanted.regions,
                wanted.precisions,
                wanted.pools,
                wanted.exclude_pools,
                wanted.max_cost_usd,
            )
            # Few requests differ in these.
            limits = self._limits.setdefault(limits, limits)
            if limits not in story.limits:
                story.limits = (*story.limits, limits)
        if seen.placement is not None and story.limits:
            broken = [_broken(each, seen.placement, seen.promised) for each in story.limits]
            # An id that was published twice may have limits of two kinds.
            if all(broken):
                told = f"{seen.request_id} {step}: {'; '.join(broken[-1])}"
                self._findings.add("constraint", where, told)

    def finish(self, *, is_whole: bool, now: float) -> None:
        """Count the ends; if the trail is cut at its beginning, some requests lack theirs.

        Args:
            is_whole: it is not cut.
            now: epoch seconds; what was due long before has ended.
        """
        for request_id, story in self._stories.items():
            # A dead letter ends an accepted request, unless that has an end of its own besides.
            ended = story.ended or min(story.dead, story.accepted)
            if story.accepted:
                self._findings.requests += 1
                # One that was published twice may wait as one, and end as one.
                self._findings.open += not ended
                due = story.deadline
                if not ended and due is not None and due + GRACE_S < now:
                    told = f"accepted, due {iso_time(due)}, and has no end"
                    self._findings.add("unended", request_id, told)
            if ended > story.accepted and (is_whole or story.accepted):
                self._findings.add(
                    "ended_twice",
                    request_id,
                    f"accepted {_times(story.accepted)}, ended {_times(ended)}",
                )


def _is_ingested(seen: AskedStep) -> bool:
    """Return whether a step is of a request that was new, a second run among them."""
    topic = seen.source.topic
    is_second_run = seen.task == BACKGROUND_TASK and seen.attempt == 1
    return topic.endswith(".requests") or (is_second_run and topic.endswith(".reroutes"))


def _broken(limits: _Limits, placement: SeenPlacement, promised: SeenEnvelope | None) -> list[str]:
    found = []
    for what, value, allowed in (
        ("region", placement.region, limits.regions),
        ("precision", placement.precision, limits.precisions),
        ("pool", placement.pool, limits.pools),
    ):
        if allowed is not None and value not in allowed:
            found.append(f"{what} {value} is not among {', '.join(allowed) or 'none'}")
    if placement.pool in limits.exclude_pools:
        found.append(f"pool {placement.pool} was excluded")
    most = limits.max_cost_usd
    if most is not None and promised is not None and promised.cost_usd > most:
        found.append(f"{promised.cost_usd} USD were promised, at most {most} allowed")
    return found


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")
