"""Sampling: which requests are run a second time, and what the second run is for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from policies.config.classes import ClassWatch
from policies.config.policy import Policy
from policies.quality.comparison import is_comparable
from policies.quality.verdict_state import KnownQuality
from topics import BACKGROUND_TASK, Candidate, Profile, QualityCheck
from topics.bounded_dict import BoundedDict
from topics.records.quality import Asked

DAY_S = 86_400.0
# Days of classes whose marks are counted.
_COUNTED_MAX = 1_000


def share_of(request_id: str) -> float:
    """Return a number from 0 to below 1 that depends on the id alone, evenly spread."""
    digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"quality")
    return int.from_bytes(digest.digest()) / 2**64


def second_id(request_id: str, asked: Asked) -> str:
    """Return the id of a second run, the same whenever it is asked for."""
    digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=12)
    return f"quality-{asked}-{digest.hexdigest()}"


def minds_drift(profile: Profile, policy: Policy) -> bool:
    """Return True if a request may not go to a variant that has drifted.

    A second run may: whether the variant still differs is what it is to find out.
    """
    workload = policy.classes.get(profile.task)
    return not profile.is_background and (workload is None or workload.minds_drift)


def second_run(profile: Profile, check: QualityCheck, asked: Asked, now: float) -> Profile:
    """Return the profile of a second run: work that waits, under the request's own constraints.

    Args:
        profile: the request's, or an earlier second run's.
        check: what it is for, with whose answer it judges.
        asked: which of the two it asks.
        now: epoch seconds.
    """
    of = check.of or profile.id
    return replace(
        profile,
        id=second_id(of, asked),
        task=BACKGROUND_TASK,
        tier="batch",
        created_at=now,
        routed_at=now,
        deadline=now + check.deadline_s,
        ttft_s=None,
        tpot_s=None,
        latency_sensitive=False,
        batchable=True,
        longest_wait_s=check.deadline_s,
        window_s=min(check.window_s, check.deadline_s),
        session=None,
        attempt=1,
        fallbacks=(),
        # The operator pays for it.
        price_factor=1.0,
        reserved=None,
        spent=None,
        quality=replace(check, of=of, asked=asked),
        # Nobody pays for it.
        quote=None,
    )


class Sampler:
    """Chooses requests of the policy's classes, within their budgets.

    What was chosen here and is not reported yet counts by its estimate.
    """

    def __init__(self, policy: Policy, known: KnownQuality) -> None:
        self.policy = policy
        self._known = known
        self._chosen_usd: BoundedDict[tuple[str, int], float] = BoundedDict(_COUNTED_MAX)

    def check_of(
        self,
        profile: Profile,
        body: Mapping[str, Any],
        candidates: Sequence[Candidate],
        chosen: tuple[str, str] | None,
        part: float,
        now: float,
    ) -> QualityCheck | None:
        """Return what a request's second run is for, None if it has none.

        Args:
            profile: the request's.
            body: its body.
            candidates: of the decision on it; a reference that may not serve it now is not asked.
            chosen: pool and variant that it goes to; None if it is held.
            part: this router's part of the ingest partitions; above 0.
            now: epoch seconds.
        """
        watch = self._watch(profile, body)
        if watch is None:
            return None
        check = QualityCheck(
            profile.task,
            watch.reference,
            watch.compare,
            watch.within,
            watch.window_s,
            watch.deadline_s,
            watch.reference_pool,
        )
        check = replace(check, probe=self._probe(profile, check, candidates))
        usd = _cost_usd(check, candidates)
        is_answered = chosen is not None and check.is_reference(*chosen)
        if usd is None or (is_answered and check.probe is None):
            return None
        usd *= (not is_answered) + (check.probe is not None)
        return check if self._is_within(profile.task, watch, usd, part, now) else None

    def _watch(self, profile: Profile, body: Mapping[str, Any]) -> ClassWatch | None:
        workload = self.policy.classes.get(profile.task)
        watch = None if workload is None else workload.watch
        if watch is None or profile.attempt > 1 or profile.quality is not None:
            return None
        if share_of(profile.id) >= watch.share or not self.policy.limits_of(profile.tenant).watch:
            return None
        return watch if is_comparable(body, profile.operation, watch.compare) else None

    def _probe(
        self, profile: Profile, check: QualityCheck, candidates: Sequence[Candidate]
    ) -> tuple[str, str] | None:
        """Return a variant that only its drift keeps from serving the request, each in turn."""
        where = check.reference, check.reference_pool
        drifted = sorted(
            (each.pool, each.model_variant)
            for each in candidates
            if each.refused == "drifted"
            and self._known.has_drifted((each.pool, each.model_variant, *where))
        )
        if not drifted:
            return None
        return drifted[int(share_of(f"probe of {profile.id}") * len(drifted))]

    def _is_within(
        self,
        task: str,
        watch: ClassWatch,
        usd: float,
        part: float,
        now: float,
    ) -> bool:
        """Count the cost and return True if the day's budget has it."""
        day = int(now // DAY_S)
        told = self._known.spent.get(task)
        reported_usd = told.usd if told is not None and told.day == day else 0.0
        chosen_usd = self._chosen_usd.get((task, day), 0.0) + usd
        if max(reported_usd + usd, chosen_usd / part) > watch.budget_usd_per_day:
            return False
        self._chosen_usd.put((task, day), chosen_usd)
        return True


def _cost_usd(check: QualityCheck, candidates: Sequence[Candidate]) -> float | None:
    """Return what a run on the reference is expected to cost, None if it may not run there.

    A pool without a direct lane takes no work that can't wait; a second run can. Nothing was
    estimated there, so that it counts as the dearest.
    """
    able = [
        each.cost_usd
        for each in candidates
        if each.refused in (None, "lane") and check.is_reference(each.pool, each.model_variant)
    ]
    known = [usd for usd in able if usd is not None]
    if known or not able:
        return min(known, default=None)
    return max((each.cost_usd for each in candidates if each.cost_usd is not None), default=None)
