"""Estimates: cost and latency of serving a request on an option."""

from math import erf, exp, log, sqrt

from policies.config.options import Option
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import Standing
from topics import Candidate, LatencyError, Profile
from topics.records.frozen import dataclass
from topics.records.placement import CandidatePath

SQRT2 = sqrt(2.0)
# Standard deviations from the median of a normal distribution to these quantiles.
P90, P98 = 1.2816, 2.0537
# Of what `exp` takes; a float ends a little above.
LOG_MAX = 700.0
# For what is expected to take no time at all.
TINY_S = 1e-12
# Share of a replica's places that batch work fills; the rest is for what can't wait.
BATCH_SHARE = 0.75
# A pool in which much waits for places is no scarcer than this.
FULLNESS_MAX = 1.5


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost in US dollars; times in seconds from the moment of the decision."""

    cost_usd: float
    ttft_s: float
    tpot_s: float
    finish_s: float
    device_s: float
    """Device time before a later request can start, in seconds."""
    latest_s: float
    """The finish of a reply as long as such replies seldom are."""


def estimate(
    profile: Profile,
    standing: Standing,
    transport_s: float,
    members: int = 1,
    wait_s: float = 0.0,
    cached_tokens: int = 0,
) -> Estimate:
    """Return the estimate of one of ``members`` like requests, sent together after ``wait_s``.

    Cost is the marginal device time, see `Standing.terms`. Latencies are those of a pool whose
    replicas share its work evenly; the members' prefills follow each other, and other variants on
    the device take turns with this one (``standing.others_s``). ``cached_tokens`` of the prompt
    cost nothing, but no promise relies on them: they may be evicted by then.

    The iterations of `policies.hardware.roofline` are inlined here: a decision takes 0.7 times as
    long (`python -m benchmarks.budget`).
    """
    roofline, spread, gathered, paid, ahead, lack, rate = standing.terms(members, wait_s > 0)
    token_s, pair_s, weights_s, kv_token_s, untouched, overhead_s, traffic_s, begin_s = roofline
    speed, pace, usd_per_s = rate
    # Of no prompt at all a token is computed.
    prompt, output_tokens = profile.input_tokens or 1, profile.output_tokens
    compute_s = prompt * token_s + prompt * (0.5 * prompt) * pair_s
    memory_s = weights_s
    if untouched:
        memory_s *= 1.0 - untouched**prompt
    prefill_s = prompt * traffic_s + begin_s + (compute_s if compute_s > memory_s else memory_s)
    computed_s = prefill_s
    if cached_tokens:
        computed_s = standing.option.roofline.prefill_s(profile.input_tokens, cached_tokens)
    device_s = computed_s / speed
    decode_steps = output_tokens - 1 if output_tokens > 0 else 0
    step_s = 0.0
    if decode_steps:
        context_tokens = profile.input_tokens + output_tokens // 2
        sequences, compute_s, memory_s = spread
        compute_s += sequences * context_tokens * pair_s
        memory_s += sequences * context_tokens * kv_token_s
        step_s = together_s = (compute_s if compute_s > memory_s else memory_s) + overhead_s
        if gathered is not spread:
            sequences, compute_s, memory_s = gathered
            compute_s += sequences * context_tokens * pair_s
            memory_s += sequences * context_tokens * kv_token_s
            together_s = (compute_s if compute_s > memory_s else memory_s) + overhead_s
        woken, sharers, base_s, sustained_s = paid
        if woken:
            added_s = woken * together_s / sharers
        else:
            added_s = (together_s - base_s) / sharers + sustained_s
        device_s += decode_steps * added_s / speed
    others_s = standing.others_s
    tpot_s = step_s / pace + others_s
    # Those that hold places or memory are taken as alike and evenly spread in age.
    room_wait_s = ahead * (output_tokens or 1) * tpot_s / standing.slots if ahead else 0.0
    missing = lack[0] + lack[1] * (prompt + output_tokens)
    if missing > 0:
        room_wait_s = max(room_wait_s, missing * (output_tokens or 1) * tpot_s)
    ttft_s = (
        wait_s
        + transport_s
        + standing.backlog_s
        + room_wait_s
        + others_s
        + members * prefill_s / pace
    )
    finish_s = ttft_s + decode_steps * tpot_s
    high = profile.output_tokens_high
    latest_s = finish_s if high is None else ttft_s + max(decode_steps, high - 1) * tpot_s
    return Estimate(device_s * usd_per_s, ttft_s, tpot_s, finish_s, prefill_s / pace, latest_s)


def scarcity(standing: Standing, policy: Policy) -> float:
    """Return the shadow price: the factor on a place's cost because few are left.

    A place that another request could use is worth what that one then pays elsewhere. A price that
    grows exponentially with use is best against unknown arrivals (Buchbinder and Naor, "The design
    of competitive online algorithms via a primal-dual approach", 2009).
    """
    from_share = policy.scarcity.from_share
    if standing.fullness <= from_share:
        return 1.0
    over = (min(standing.fullness, FULLNESS_MAX) - from_share) / (1.0 - from_share)
    return float(policy.scarcity.price_factor**over)


def batch_limit(profile: Profile, option: Option, members_max: int) -> int:
    """Return how many requests like this one fill the device, by sequences or KV memory."""
    tokens = max(1, profile.input_tokens + profile.output_tokens)
    return max(1, min(members_max, option.max_batch, option.kv_capacity_tokens // tokens))


def room(standing: Standing) -> int:
    """Return how many more sequences fit beside the running ones without waking a replica.

    The pool gathers a variant's sequences (`policies.hardware.replica`), so running ones are
    assumed to fill their replicas one after another, up to the share that batch work may take. If
    none runs, a replica has to be woken anyway, and is free for the whole batch.
    """
    if not standing.running:
        return standing.option.max_batch
    places = max(1, int(standing.option.max_batch * BATCH_SHARE))
    return -standing.running % places


def chance(
    profile: Profile,
    estimate: Estimate,
    elapsed_s: float,
    spread: float,
    ttft_error: LatencyError | None = None,
    tpot_error: LatencyError | None = None,
) -> float:
    """Return the chance of meeting deadline, TTFT and TPOT.

    The actual latency is assumed log-normal around the estimate. One error drives all three, so
    the least chance counts and not the product. The finish is that of a reply of high length.

    Args:
        profile: profile with the SLO.
        estimate: latencies from now.
        elapsed_s: time since ``created_at``.
        spread: standard deviation of ln(actual / predicted) if nothing was learned.
        ttft_error: TTFT error of that option's past promises, if enough were seen.
        tpot_error: TPOT error of that option's past promises, if enough were seen.
    """
    limit_s, predicted_s = profile.deadline - profile.created_at - elapsed_s, estimate.latest_s
    least = limit_s / (predicted_s or TINY_S)
    if profile.ttft_s is not None:
        limit_s, predicted_s = profile.ttft_s - elapsed_s, estimate.ttft_s
        times = limit_s / (predicted_s or TINY_S)
        if ttft_error is not None:
            times = _as_usual(times, ttft_error, spread)
        if times < least:
            least = times
    if profile.tpot_s is not None and profile.output_tokens > 1:
        limit_s, predicted_s = profile.tpot_s, estimate.tpot_s
        times = limit_s / (predicted_s or TINY_S)
        if tpot_error is not None:
            times = _as_usual(times, tpot_error, spread)
        if times < least:
            least = times
    # The chance grows with the ratio, so that one is asked for in place of three.
    return 0.5 * (1.0 + erf(log(least) / (spread * SQRT2))) if least > 0 else 0.0


def _as_usual(times: float, error: LatencyError, spread: float) -> float:
    """Return the ratio that is as likely to be kept under that spread as this one is.

    Between the learned quantiles, and beyond them, errors are assumed normal. Learned errors make
    no promise safer than it would be without: a pool lets a request share a replica only if much
    of its SLO is left (`policies.hardware.replica`), so promises nearer to the SLO than before
    would need replicas of their own, which cost more than was estimated.
    Backtests under distorted speeds: docs/placement.md.
    """
    if times <= 0:
        return times
    margin, (median, p90, p98) = log(times), error
    if margin <= p90:
        deviations = P90 * (margin - median) / (p90 - median)
    else:
        deviations = P90 + (P98 - P90) * (margin - p90) / (p98 - p90)
    return min(times, exp(min(LOG_MAX, deviations * spread)))


def candidate(
    option: Option, path: CandidatePath, found: Estimate, likely: float, elapsed_s: float
) -> Candidate:
    """Return an estimate in the form of evidence: latencies count from ``created_at``."""
    return Candidate(
        option.pool,
        option.variant,
        option.precision,
        option.region,
        path,
        found.cost_usd,
        elapsed_s + found.ttft_s,
        elapsed_s + found.finish_s,
        found.tpot_s,
        likely,
    )
