"""The fill of a pool's replicas, by how many of its requests missed their SLO of late."""

from policies.hardware.replica import USUAL, FillLimits

# The fill that a pool comes to which hardly misses anything.
FULL = FillLimits(tpot_share=0.85, ttft_share=0.7, prefill_share_max=0.8)
# Of requests with a latency SLO, the share that may miss before replicas are filled less again: a
# third of what may miss where 99 % are to be in time.
MISSED_MAX = 0.003
# What one miss takes away of the way from the usual fill to the full one.
MISS_STEP = 0.1


class PoolFill:
    """The fill up to which a pool's replicas take requests: as usual, or further if few miss.

    Each request that kept its SLO adds to the fill, each that missed takes away as much as
    1 / `MISSED_MAX` of those add. So a pool whose requests come so evenly that fewer miss becomes
    full, one in whose bursts more miss stays as usual, and any other settles where that share does.
    """

    def __init__(self) -> None:
        """Start with the usual room: nothing was seen yet."""
        self._filled = 0.0

    @property
    def limits(self) -> FillLimits:
        """The fill up to which a replica takes a request now."""
        between = (low + self._filled * (high - low) for low, high in zip(USUAL, FULL, strict=True))
        return FillLimits(*between)

    def ended(self, *, is_kept: bool) -> None:
        """Count a request with a latency SLO that has ended, and whether it kept all of it."""
        step = MISSED_MAX * MISS_STEP if is_kept else -MISS_STEP
        self._filled = min(1.0, max(0.0, self._filled + step))
