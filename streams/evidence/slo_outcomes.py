"""SLO outcomes: decide if a request met its own SLO.

The metrics apply this to the evidence of their process, the live view to the evidence it reads.
"""

from policies.scoring.slo import kept
from streams.evidence.projection import EvidenceStep, SeenTarget
from topics import Evidence, Profile

# A rejection for another reason means that the request can't or may not be served.
NO_WORKER = "pool_unavailable"


DIMENSIONS = ("ttft", "tpot", "deadline", "all")


def outcomes(end: Evidence | EvidenceStep, wanted: Profile | SeenTarget | None) -> dict[str, bool]:
    """Return whether each dimension of the SLO was met, and ``all`` together.

    Latencies count from ``created_at``. For a request without an answer only the deadline is known
    to be missed; a cancelled or rejected one has no SLO, and the result is empty.

    Args:
        end: the step that ended the request.
        wanted: the profile of the request, where it was executed.
    """
    if end.step == "executed":
        if wanted is None or end.got is None:
            return {}
        got = end.got
        return kept(
            in_time=wanted.created_at + got.finish_s <= wanted.deadline,
            ttft_s=got.ttft_s,
            ttft_max_s=wanted.ttft_s,
            tpot_s=got.tpot_s,
            tpot_max_s=wanted.tpot_s,
        )
    is_turned_away = end.step == "rejected" and end.reason != NO_WORKER
    if end.step == "cancelled" or is_turned_away:
        return {}
    return {"deadline": False, "all": False}
