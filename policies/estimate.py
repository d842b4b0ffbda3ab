"""Estimates: what serving a request somewhere would cost and how long it would take."""

from math import erf, exp, inf, log, sqrt

from policies.options import Option
from policies.policy import Policy
from policies.standing import Standing
from topics import Candidate, LatencyError, Profile
from topics.placement import CandidatePath
from topics.records import dataclass

SQRT2 = sqrt(2.0)
# Of the steps of a variant that joins other variants on a replica, the share that makes the
# replica busy for longer. At low traffic it would have been busy all the same; at high traffic not.
BUSY_ANYWAY = 0.5
# A pool counts as full by this share at least: what runs at its peak takes places for certain.
FULLNESS_MIN = 0.25
# Of the streaming that a sequence shares with others, the share that goes on because it came: the
# fewer there are, the sooner the replica would have had nothing to do.
SUSTAINED = 0.5
# Standard deviations from the median of a normal distribution to these quantiles.
P90, P98 = 1.2816, 2.0537
# Of what `exp` takes; a float ends a little above.
LOG_MAX = 700.0
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
    """Return what one of ``members`` like requests costs, sent together after ``wait_s``.

    Cost is the marginal device time, see `_decode_device_s`. Latencies are those of a pool whose
    replicas share its work evenly; the members' prefills follow each other, and other variants on
    the device take turns with this one (``standing.others_s``). ``cached_tokens`` of the prompt
    cost nothing, but no promise counts on them: they may be gone by then.
    """
    option, running = standing.option, standing.running
    prefill_s = computed_s = option.roofline.prefill_s(profile.input_tokens)
    if cached_tokens:
        computed_s = option.roofline.prefill_s(profile.input_tokens, cached_tokens)
    device_s = computed_s / standing.speed
    output_tokens = profile.output_tokens
    decode_steps = output_tokens - 1 if output_tokens > 0 else 0
    step_s = 0.0
    if decode_steps:
        step = option.roofline.step_s
        context_tokens = profile.input_tokens + output_tokens // 2
        max_batch = option.max_batch
        sequences = min(max_batch, running // standing.replicas + members)
        step_s = step(sequences, sequences * context_tokens)
        together = min(max_batch, running + members)
        # Where nothing runs the two are one step; a router asks this for every candidate.
        together_s = step_s
        if together != sequences:
            together_s = step(together, together * context_tokens)
        added_s = _decode_device_s(standing, members, together, together_s, wait_s > 0)
        device_s += decode_steps * added_s / standing.speed
    pace, others_s = standing.pace, standing.others_s
    tpot_s = step_s / pace + others_s
    # Sequences that must end before there is a place, taken as alike and evenly spread in age.
    ahead = running + members - standing.slots
    slot_wait_s = ahead * max(1, output_tokens) * tpot_s / standing.slots if ahead > 0 else 0.0
    ttft_s = (
        wait_s
        + transport_s
        + standing.backlog_s
        + slot_wait_s
        + others_s
        + members * prefill_s / pace
    )
    finish_s = ttft_s + decode_steps * tpot_s
    high = profile.output_tokens_high
    latest_s = finish_s if high is None else ttft_s + max(decode_steps, high - 1) * tpot_s
    return Estimate(
        device_s * option.usd_per_s, ttft_s, tpot_s, finish_s, prefill_s / pace, latest_s
    )


def _decode_device_s(
    standing: Standing, members: int, together: int, together_s: float, fills_gaps: bool
) -> float:
    """Return the device time that one decode step of one member adds, in seconds.

    Work gathers on few replicas of a pool (`policies.replica`). Where the variant decodes already,
    the weights are streamed anyway, and a sequence more adds its own tokens. But the streaming goes
    on because sequences keep coming, so it sustains a share of it; else pools that decode a little
    each would look equally cheap and hold each other up. As the pool fills, it takes a place from
    later ones, who will need another replica: at least that share of a full step. A replica that
    is busy with other variants would be busy without this one too, for part of the time. An idle
    one is woken for these members.

    Work that waits for room (``fills_gaps``) takes places that nobody else wants. ``together_s`` is
    a step of the members with all that run on one replica, as far as it has places: ``together``.
    """
    running = standing.running
    if running == 0:
        share = 1.0 if standing.is_idle else BUSY_ANYWAY
        return share * together_s / min(members, together)
    alone_s = standing.option.roofline.alone_s
    growth_s = (together_s - alone_s) / together
    if fills_gaps:
        return growth_s
    fullness = max(FULLNESS_MIN, min(1.0, running / standing.slots))
    max_batch = standing.option.max_batch
    return growth_s + alone_s * max(fullness / max_batch, SUSTAINED / (running + 1))


def expected_cost_usd(estimate: Estimate, standing: Standing, policy: Policy) -> float:
    """Return the cost with that of the second try which a failure of this one would take."""
    return estimate.cost_usd * (1.0 + standing.failure_rate * policy.retry_cost_weight)


def scarcity(standing: Standing, policy: Policy) -> float:
    """Return how many times its cost a place counts as, because few are left: the shadow price.

    What another could have used is worth what the other then pays elsewhere. A price that grows
    exponentially with use serves best against what may come (Buchbinder and Naor, "The design of
    competitive online algorithms via a primal-dual approach", 2009).
    """
    from_share = policy.scarcity.from_share
    if standing.fullness <= from_share:
        return 1.0
    over = (min(standing.fullness, FULLNESS_MAX) - from_share) / (1.0 - from_share)
    return float(policy.scarcity.price_factor**over)


def batch_limit(profile: Profile, option: Option, members_max: int) -> int:
    """Return how many requests like this one fill the device: by sequences or by KV memory."""
    tokens = max(1, profile.input_tokens + profile.output_tokens)
    return max(1, min(members_max, option.max_batch, option.kv_capacity_tokens // tokens))


def room(standing: Standing) -> int:
    """Return how many sequences more fit beside those that run, without waking a replica.

    The pool gathers a variant's sequences (`policies.replica`), so those that run are taken to
    fill their replicas one after another, up to the share that batch work may take. Where none
    runs, a replica has to be woken anyway, and is free for the whole batch.
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

    The actual latency is taken as log-normal about the estimate. One error drives all three, so the
    least chance counts and not the product. The finish counts for a reply of high length.

    Args:
        profile: whose SLO it is.
        estimate: latencies from now.
        elapsed_s: time since ``created_at``.
        spread: standard deviation of ln(actual / predicted) where nothing was learned.
        ttft_error: of past promises of that option, if enough were seen.
        tpot_error: likewise.
    """
    least = _times(estimate.latest_s, profile.deadline - profile.created_at - elapsed_s)
    if profile.ttft_s is not None:
        ttft = _times(estimate.ttft_s, profile.ttft_s - elapsed_s)
        least = min(least, _as_usual(ttft, ttft_error, spread))
    if profile.tpot_s is not None and profile.output_tokens > 1:
        tpot = _times(estimate.tpot_s, profile.tpot_s)
        least = min(least, _as_usual(tpot, tpot_error, spread))
    # The chance grows with the ratio, so that one is asked for in place of three.
    return 0.5 * (1.0 + erf(log(least) / (spread * SQRT2))) if least > 0 else 0.0


def _as_usual(times: float, error: LatencyError | None, spread: float) -> float:
    """Return the ratio that is as likely to be kept as this one if errors had that spread.

    Between the quantiles that were learned, and beyond them, errors are taken as normal. What was
    learned makes no promise safer than it would be without: a pool lets a request share a replica
    only where much of its SLO is left (`policies.replica`), so promises nearer to the SLO than
    before would be kept by replicas of their own, which cost more than was estimated. Backtests
    under distorted speeds: docs/placement.md.
    """
    if error is None or times <= 0:
        return times
    margin, (median, p90, p98) = log(times), error
    if margin <= p90:
        deviations = P90 * (margin - median) / (p90 - median)
    else:
        deviations = P90 + (P98 - P90) * (margin - p90) / (p98 - p90)
    return min(times, exp(min(LOG_MAX, deviations * spread)))


def _times(predicted_s: float, limit_s: float) -> float:
    """Return how many times the predicted time the limit is."""
    if limit_s <= 0:
        return 0.0
    return limit_s / predicted_s if predicted_s > 0 else inf


def candidate(
    option: Option, path: CandidatePath, found: Estimate, likely: float, elapsed_s: float
) -> Candidate:
    """Return an estimate as evidence shows it: latencies count from ``created_at``."""
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
