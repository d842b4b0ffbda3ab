"""The judge of an SLO: which of its dimensions were met, of measured latencies and limits."""


def kept(
    *,
    in_time: bool,
    ttft_s: float | None,
    ttft_max_s: float | None,
    tpot_s: float | None,
    tpot_max_s: float | None,
) -> dict[str, bool]:
    """Return whether each dimension of an SLO was met, and ``all`` together.

    A latency without a limit, or that was not measured, is no dimension.

    Args:
        in_time: whether the answer came by the deadline.
        ttft_s: time to the first token, seconds.
        ttft_max_s: its limit.
        tpot_s: time per output token after the first, seconds.
        tpot_max_s: its limit.
    """
    found = {"deadline": in_time}
    if ttft_s is not None and ttft_max_s is not None:
        found["ttft"] = ttft_s <= ttft_max_s
    if tpot_s is not None and tpot_max_s is not None:
        found["tpot"] = tpot_s <= tpot_max_s
    found["all"] = all(found.values())
    return found
