"""Estimates: cost and latency of serving a request on an option."""

from collections.abc import Sequence
from math import erf, exp, inf, log, sqrt
from typing import NamedTuple

from policies.config.options import Option
from policies.config.policy import Policy
from policies.config.prices import TokenRates
from policies.fleet_state.candidate_load import Learned, OptionState
from policies.fleet_state.estimate_terms import DecodeStep
from policies.hardware.pool_fill import FULL
from policies.scoring.answers import Answers
from topics import Candidate, LatencyError, Profile
from topics.records.money import NANO
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


class Estimate(NamedTuple):
    """Cost in US dollars; times in seconds from the moment of the decision."""

    cost_usd: float
    ttft_s: float
    tpot_s: float
    finish_s: float
    device_s: float
    """Device time before a later request can start, in seconds."""
    latest_s: float
    """The finish of a reply as long as such replies seldom are."""
    least_tpot_s: float
    """The TPOT that its pool can keep to, by spreading its work."""


Figures = tuple[float, float, float, float, float, float, float]
"""The values of an `Estimate`. A router has one for each candidate of each request, and makes a
plain tuple in a tenth of the time of a named one."""

Visit = tuple[OptionState, CandidatePath, int, float, int]
"""A way to serve a request: standing, path, members (that many like requests are sent together),
``wait_s`` until then, and the tokens of the prompt that are likely cached: they cost nothing.
Latencies are those without them, see `count_cached`."""


def estimate(
    profile: Profile,
    standing: OptionState,
    transport_s: float,
    members: int = 1,
    wait_s: float = 0.0,
    cached_tokens: int = 0,
) -> Estimate:
    """Return the estimate of one `Visit`, see `estimates`."""
    visit: Visit = (standing, "direct", members, wait_s, cached_tokens)
    return Estimate(*estimates(profile, [visit], transport_s)[0])


def estimates(profile: Profile, visits: list[Visit], transport_s: float) -> list[Figures]:
    """Return the estimate of each visit.

    Cost is that of the marginal device time, see `OptionState.terms`, or of the tokens, times the
    tier's factor. Latencies are those of a pool whose replicas share its work evenly or, where it
    gathers it, of the fullest replica on which the SLO holds; the members' prefills follow each
    other, and other variants on the device take turns with this one.

    What depends on the request alone is found once, and the iterations of
    `policies.hardware.roofline` are inlined: a decision takes two thirds of the time.
    """
    # Of no prompt at all a token is computed.
    each, output_tokens, answers = profile.prompt_tokens, profile.output_tokens, profile.answers
    prompt, reply_tokens = each or 1, output_tokens or 1
    pairs, decode_steps = prompt * (0.5 * prompt), output_tokens - 1 if output_tokens > 0 else 0
    context_tokens = each + output_tokens // 2
    own = None if answers == 1 else Answers.of(profile)
    tokens = prompt + output_tokens if own is None else own.tokens_each
    high = profile.output_tokens_high
    high_steps = None if high is None else max(decode_steps, high - 1)
    limit_s = inf if profile.tpot_s is None else FULL.tpot_share * profile.tpot_s
    found: list[Figures] = []
    for standing, _, members, wait_s, cached_tokens in visits:
        together = members * answers
        terms = standing.known_terms.get(-together if wait_s > 0 else together)
        (token_s, pair_s, weights_s, kv_token_s, untouched_share, overhead_s, traffic_s, begin_s,
         spread, gathered, woken, sharers, base_s, sustained_s, ahead, slots,
         kv_missing, kv_token_share, speed, pace, usd_per_s, backlog_s, others_s, crowd,
         mixed_s, usual_s, usual_known) = terms or standing.terms(together, wait_s > 0)  # fmt: skip
        compute_s, memory_s = prompt * token_s + pairs * pair_s, weights_s
        if untouched_share:
            memory_s *= 1.0 - untouched_share**prompt
        busy_s = compute_s if compute_s > memory_s else memory_s
        alone_s = prompt * traffic_s + begin_s + busy_s
        prefill_s = alone_s if own is None else own.prefill_s(standing.roofline)
        device_s = prefill_s / speed
        if cached_tokens:
            device_s = standing.roofline.prefill_s(profile.input_tokens, cached_tokens) / speed
        step_s = together_s = 0.0
        if decode_steps:
            step_s = together_s = _step_s(spread, context_tokens, pair_s, kv_token_s, overhead_s)
            if gathered is not spread:
                together_s = _step_s(gathered, context_tokens, pair_s, kv_token_s, overhead_s)
            added_s = (
                woken * together_s / sharers
                if woken
                else (together_s - base_s) / sharers + sustained_s
            )
            device_s += decode_steps * answers * added_s / speed
        tpot_s = least_tpot_s = step_s / pace + others_s
        if crowd is not None:
            if decode_steps and crowd is not gathered:
                together_s = _step_s(crowd, context_tokens, pair_s, kv_token_s, overhead_s)
            fullest_s = min(mixed_s + together_s / pace, limit_s)
            tpot_s, others_s = _in_company(fullest_s, mixed_s, tpot_s, others_s)
        # Those that hold places or memory are taken as alike and evenly spread in age.
        missing = kv_missing + kv_token_share * tokens
        room_wait_s = 0.0 if own is None else own.room_wait_s(standing.option, tpot_s)
        if ahead or missing > 0.0:
            of_places_s = ahead * reply_tokens * tpot_s / slots
            room_wait_s = max(room_wait_s, of_places_s, missing * reply_tokens * tpot_s)
        comes_s = wait_s + transport_s + usual_known * (usual_s - transport_s)
        ttft_s = comes_s + backlog_s + room_wait_s + others_s + members * prefill_s / pace
        finish_s, cost_usd = ttft_s + decode_steps * tpot_s, device_s * usd_per_s
        latest_s = finish_s if high_steps is None else ttft_s + high_steps * tpot_s
        if not usd_per_s and (rates := standing.option.rates) is not None:
            cost_usd = _usd_of_tokens(profile, rates, cached_tokens)
        found.append((cost_usd, ttft_s, tpot_s, finish_s, prefill_s / pace, latest_s, least_tpot_s))
    found, factor = found if own is None else _begun(own, visits, found), profile.price_factor
    return found if factor == 1.0 else [(each[0] * factor, *each[1:]) for each in found]


def _begun(own: Answers, visits: list[Visit], found: list[Figures]) -> list[Figures]:
    """Return estimates with the TTFT of the first of several answers, not of their last."""
    begun: list[Figures] = []
    for (standing, _, members, wait_s, _), figures in zip(visits, found, strict=True):
        ahead = standing.terms(members * own.count, wait_s > 0).ahead
        cost_usd, ttft_s, tpot_s, finish_s, own_s, latest_s, least_tpot_s = figures
        ttft_s -= own.late_s(standing, members, ahead, tpot_s)
        begun.append((cost_usd, ttft_s, tpot_s, finish_s, own_s, latest_s, least_tpot_s))
    return begun


def _usd_of_tokens(profile: Profile, rates: TokenRates, cached_tokens: int) -> float:
    written = profile.answers * profile.output_tokens
    return rates.nano_usd(profile.input_tokens, written, cached_tokens) / NANO


def _in_company(
    fullest_s: float, mixed_s: float, tpot_s: float, others_s: float
) -> tuple[float, float]:
    """Return TPOT and the turns of other variants where work gathers.

    It does so as long as SLOs hold; what comes then finds a replica with fewer.

    Args:
        fullest_s: TPOT on the fullest replica on which they do.
        mixed_s: one iteration of the other variants there.
        tpot_s: TPOT if the pool spread its work evenly.
        others_s: the turns of the others, if it did.
    """
    tpot_s = max(tpot_s, fullest_s)
    return tpot_s, max(others_s, min(mixed_s, tpot_s))


def _step_s(
    step: DecodeStep, context_tokens: int, pair_s: float, kv_token_s: float, overhead_s: float
) -> float:
    """Return one decode step of sequences that have this context each."""
    sequences, compute_s, memory_s = step
    tokens = sequences * context_tokens
    compute_s += tokens * pair_s
    memory_s += tokens * kv_token_s
    return (compute_s if compute_s > memory_s else memory_s) + overhead_s


def scarcity(standing: OptionState, policy: Policy) -> float:
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
    tokens, places = max(1, profile.tokens), option.max_batch // profile.answers
    return max(1, min(members_max, places, option.kv_capacity_tokens // tokens))


def room(standing: OptionState, answers: int = 1) -> int:
    """Return how many requests of so many answers fit beside what runs, waking no replica.

    The pool gathers a variant's sequences (`policies.hardware.replica`), so running ones are
    assumed to fill their replicas one after another, up to the share that batch work may take. If
    none runs, a replica has to be woken anyway, and is free for the whole batch.
    """
    if not standing.running:
        return max(1, standing.option.max_batch // answers)
    places = max(1, int(standing.option.max_batch * BATCH_SHARE))
    return -standing.running % places // answers


def spread_of(standing: OptionState, policy: Policy) -> float:
    """Return the standard deviation of ln(actual / predicted) if no errors were learned.

    An estimate of a device that nobody has measured errs more, until its pool has.
    """
    return max(policy.estimates.spread, standing.error)


def chance(
    profile: Profile,
    estimate: Estimate,
    elapsed_s: float,
    spread: float,
    ttft_error: LatencyError | None = None,
    tpot_error: LatencyError | None = None,
) -> float:
    """Return the chance of one estimate with these errors, see `chances`."""
    learned = Learned(ttft_error, tpot_error)
    return chances(profile, [estimate], [learned], elapsed_s, [spread])[0]


def chances(
    profile: Profile,
    estimates: Sequence[Figures],
    learned: Sequence[Learned],
    elapsed_s: float,
    spreads: Sequence[float],
) -> list[float]:
    """Return the chance of each estimate to meet deadline, TTFT and TPOT.

    The actual latency is assumed log-normal around the estimate. One error drives all three, so
    the least chance counts and not the product. The finish is that of a reply of high length. The
    TPOT is the least that the pool can keep to, as its choice of a replica sees to it
    (`policies.hardware.replica`). Errors of past promises make none safer than it is without.

    Args:
        profile: profile with the SLO.
        estimates: latencies from now.
        learned: of each, the TTFT error and the TPOT error of that option's past promises, None if
            too few were seen.
        elapsed_s: time since ``created_at``.
        spreads: of each, standard deviation of ln(actual / predicted) if nothing was learned.
    """
    deadline_s = profile.deadline - profile.created_at - elapsed_s
    ttft_left_s = None if profile.ttft_s is None else profile.ttft_s - elapsed_s
    tpot_limit_s = profile.tpot_s if profile.output_tokens > 1 else None
    found: list[float] = []
    for figures, (ttft_error, tpot_error, _), spread in zip(
        estimates, learned, spreads, strict=True
    ):
        _, ttft_s, tpot_s, _, _, latest_s, least_tpot_s = figures
        least = deadline_s / (latest_s or TINY_S)
        if ttft_left_s is not None:
            times = ttft_left_s / (ttft_s or TINY_S)
            if ttft_error is not None:
                times = min(times, _as_usual(times, ttft_error, spread))
            if times < least:
                least = times
        if tpot_limit_s is not None:
            times = tpot_limit_s / (least_tpot_s or TINY_S)
            if tpot_error is not None:
                promised_times = tpot_limit_s / (tpot_s or TINY_S)
                times = min(times, _as_usual(promised_times, tpot_error, spread))
            if times < least:
                least = times
        # The chance grows with the ratio, so that one is asked for in place of three.
        found.append(0.5 * (1.0 + erf(log(least) / (spread * SQRT2))) if least > 0 else 0.0)
    return found


def count_cached(
    profile: Profile,
    visits: Sequence[Visit],
    figures: list[Figures],
    likely: list[float],
    spreads: Sequence[float],
    elapsed_s: float,
    cached_tokens: int,
) -> None:
    """Count what may be cached in the latencies and chances of the visits that may find it.

    It is there with the chance by which the variant's turns found theirs, and else all is computed:
    so a latency is the mean of both, and a chance that of both, each as far as it is likely.

    Args:
        profile: profile with the SLO.
        visits: ways to serve it.
        figures: of each, without the cache; changed.
        likely: of each, its chance without the cache; changed.
        spreads: as `chances` has them.
        elapsed_s: time since ``created_at``.
        cached_tokens: tokens of the prompt that are there, or are not.
    """
    for at, (standing, _, _, _, is_expected) in enumerate(visits):
        if not is_expected:
            continue
        cold, there = figures[at], standing.learned.reuse
        rest_s = standing.roofline.prefill_s(profile.input_tokens, cached_tokens) / standing.pace
        saved_s = max(0.0, cold[4] - rest_s)
        warm = [_sooner(cold, saved_s)]
        (kept,) = chances(profile, warm, [standing.learned], elapsed_s, [spreads[at]])
        likely[at] += there * (kept - likely[at])
        figures[at] = _sooner(cold, there * saved_s)


def _sooner(figures: Figures, by_s: float) -> Figures:
    cost_usd, ttft_s, tpot_s, finish_s, own_s, latest_s, least_tpot_s = figures
    times_s = ttft_s - by_s, tpot_s, finish_s - by_s, own_s - by_s, latest_s - by_s
    return (cost_usd, *times_s, least_tpot_s)


def _as_usual(times: float, error: LatencyError, spread: float) -> float:
    """Return the ratio that is as likely to be kept under that spread as this one is.

    Between the learned quantiles, and beyond them, errors are assumed normal.
    """
    if times <= 0:
        return times
    margin, (median, p90, p98) = log(times), error
    if margin <= p90:
        deviations = P90 * (margin - median) / (p90 - median)
    else:
        deviations = P90 + (P98 - P90) * (margin - p90) / (p98 - p90)
    return exp(max(-LOG_MAX, min(LOG_MAX, deviations * spread)))


def candidate(
    option: Option, path: CandidatePath, found: Figures, likely: float, elapsed_s: float
) -> Candidate:
    """Return an estimate in the form of evidence: latencies count from ``created_at``."""
    cost_usd, ttft_s, tpot_s, finish_s, *_ = found
    return Candidate(
        option.pool,
        option.variant,
        option.precision,
        option.region,
        path,
        cost_usd,
        elapsed_s + ttft_s,
        elapsed_s + finish_s,
        tpot_s,
        likely,
    )
