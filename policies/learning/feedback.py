"""Experience: a worker's knowledge of its pool from executed work."""

from math import log

from policies.learning.histogram import DecayingHistogram, merged, quantile
from policies.learning.output_lengths import LengthLog
from topics import Envelope, LatencyError, Profile, Usage
from topics.bounded_dict import BoundedDict

# Executions among which errors count, about, and those before what was seen is worth telling.
MEMORY = 500
SEEN_MIN = 50.0
# Tries whose ends count, about: at a true rate of 2 % their mean is off by a percentage point.
TRIES = 200
# Turns of sessions whose cached share counts, about, and the sessions that a worker remembers.
TURNS = 50
SESSIONS_MAX = 4096
# Of an SLO, the share that a promise must have come to so that its error counts. A pool uses what
# room an SLO leaves (policies.hardware.replica): far from it, errors are large and don't matter.
NEAR = 0.5
# Least distance of two quantiles of an error: no promise is kept for certain.
STEP_MIN = 0.05


class Experience:
    """Statistics of executions in one pool: reply lengths, promise errors, failures, cache hits."""

    def __init__(self, failure_rate: float) -> None:
        """Start from the failure rate that the fleet declares."""
        self.lengths = LengthLog()
        self._failure_rate = failure_rate
        self._failure_known = 0.0
        self._reuse: dict[str, float] = {}
        self._reuse_known: dict[str, float] = {}
        self._session_tokens: BoundedDict[tuple[str, str, str], int] = BoundedDict(SESSIONS_MAX)
        self._ttft: dict[str, DecayingHistogram] = {}
        self._tpot: dict[str, DecayingHistogram] = {}

    @property
    def failure_rate(self) -> float:
        """Share of tries that failed; the declared rate is the prior."""
        return round(self._failure_rate, 4)

    @property
    def failure_known(self) -> float:
        """Counted part of the failure rate, 0 to 1; the rest is the declared rate."""
        return round(self._failure_known, 4)

    def failed(self) -> None:
        """Count a failed try, unless the request is at fault."""
        self._failure_rate += (1.0 - self._failure_rate) / TRIES
        self._failure_known += (1.0 - self._failure_known) / TRIES

    def completed(
        self, profile: Profile, variant: str, usage: Usage, replies: int | None = None
    ) -> None:
        """Count an answer of a variant.

        Args:
            profile: of the request.
            variant: that answered.
            usage: of all its replies.
            replies: so many; None: as many as were asked for; 0: nobody knows, so that the length
                of one is none to learn.
        """
        self._failure_rate -= self._failure_rate / TRIES
        self._failure_known += (1.0 - self._failure_known) / TRIES
        replies = profile.answers if replies is None else replies
        each_tokens = -(-usage.output_tokens // replies) if replies else 0
        self.lengths.learn(profile.task, profile.model, profile.tenant, each_tokens)
        if profile.session is not None:
            key = (profile.tenant, variant, profile.session)
            before = min(self._session_tokens.get(key, 0), usage.input_tokens)
            # A conversation goes on from one of the replies.
            self._session_tokens.put(key, usage.input_tokens + each_tokens)
            if before:
                share = min(1.0, usage.cached_tokens / before)
                usual = self._reuse.get(variant, 0.0)
                known = self._reuse_known.get(variant, 0.0)
                self._reuse[variant] = usual + (share - usual) / TURNS
                self._reuse_known[variant] = known + (1.0 - known) / TURNS

    def reuse(self, variant: str) -> float:
        """Return the measured share of a session's earlier tokens that came from the cache."""
        return round(self._reuse.get(variant, 0.0), 3)

    def reuse_known(self, variant: str) -> float:
        """Return the measured part of the reuse, 0 to 1; unmeasured reuse counts as none."""
        return round(self._reuse_known.get(variant, 0.0), 3)

    def kept(
        self, profile: Profile, variant: str, promised: Envelope, got: Envelope, elapsed_s: float
    ) -> None:
        """Compare a direct request's promise with its actual latencies.

        A batch's promise is for its slowest member, which says nothing of the others. That of
        several answers is for the last of them, and they may wait for each other.

        Args:
            profile: profile of the request; without an SLO there is nothing to learn.
            variant: the variant that served it.
            promised: the last promise; latencies count from ``created_at``.
            got: actual values, counted the same way.
            elapsed_s: time from ``created_at`` to the promise.
        """
        if profile.answers > 1:
            return
        if profile.ttft_s is not None and promised.ttft_s is not None and got.ttft_s is not None:
            promised_s = promised.ttft_s - elapsed_s
            left_s = profile.ttft_s - elapsed_s
            _compare(self._ttft, variant, promised_s, got.ttft_s - elapsed_s, left_s)
        if profile.tpot_s is not None and promised.tpot_s is not None and got.tpot_s is not None:
            is_kept = got.tpot_s <= profile.tpot_s
            # A pool uses what room a TPOT leaves: one that is kept was promised well.
            took_s = min(got.tpot_s, promised.tpot_s) if is_kept else got.tpot_s
            _compare(self._tpot, variant, promised.tpot_s, took_s, profile.tpot_s)

    def ttft_error(self, variant: str) -> LatencyError | None:
        """Return the error of a variant's promised TTFTs; None until enough were seen."""
        return _error(self._ttft.get(variant))

    def tpot_error(self, variant: str) -> LatencyError | None:
        """Return the error of a variant's promised TPOTs; None until enough were seen."""
        return _error(self._tpot.get(variant))


def _compare(
    sketches: dict[str, DecayingHistogram],
    variant: str,
    promised_s: float,
    took_s: float,
    limit_s: float,
) -> None:
    if took_s <= 0 or promised_s <= 0:
        return
    if promised_s >= NEAR * limit_s:
        sketches.setdefault(variant, DecayingHistogram(MEMORY)).add(took_s / promised_s)
    elif (seen := sketches.get(variant)) is not None:
        # Errors that keep routers from promises near the SLO would never be mended otherwise.
        seen.fade()


def _error(sketch: DecayingHistogram | None) -> LatencyError | None:
    if sketch is None or sketch.total < SEEN_MIN:
        return None
    counts = merged([sketch.counts()])
    median, p90, p98 = (log(quantile(counts, share)) for share in (0.5, 0.9, 0.98))
    p90 = max(p90, median + STEP_MIN)
    return round(median, 3), round(p90, 3), round(max(p98, p90 + STEP_MIN), 3)
