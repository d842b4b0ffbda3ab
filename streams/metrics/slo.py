"""Whether a request got what it was to have: the SLO of the request itself."""

from topics import Evidence, Profile

# A rejection for another reason says that the request can't or may not be served.
NO_WORKER = "pool_unavailable"


DIMENSIONS = ("ttft", "tpot", "deadline", "all")


def outcomes(evidence: Evidence, profile: Profile | None) -> dict[str, bool]:
    """Return for each dimension of the SLO whether it was kept, and for ``all`` together.

    Latencies count from ``created_at``. Of a request without an answer only the deadline is known
    to be missed; one that was cancelled or turned away has no SLO, and the result is empty.

    Args:
        evidence: of the step that ended the request.
        profile: of the request, where it was executed.
    """
    if evidence.step == "executed":
        if profile is None or evidence.got is None:
            return {}
        got = evidence.got
        kept = {"deadline": profile.created_at + got.finish_s <= profile.deadline}
        if profile.ttft_s is not None and got.ttft_s is not None:
            kept["ttft"] = got.ttft_s <= profile.ttft_s
        if profile.tpot_s is not None and got.tpot_s is not None:
            kept["tpot"] = got.tpot_s <= profile.tpot_s
        return kept | {"all": all(kept.values())}
    is_turned_away = evidence.step == "rejected" and evidence.reason != NO_WORKER
    if evidence.step == "cancelled" or is_turned_away:
        return {}
    return {"deadline": False, "all": False}
