"""Estimates: what serving a request somewhere would cost and how long it would take."""

import math
from dataclasses import dataclass

from policies.options import Option
from policies.policy import Policy
from policies.view import PoolLoad, running_step_s
from topics import Candidate, Profile
from topics.placement import CandidatePath

SQRT2 = math.sqrt(2.0)
# Of the steps of a variant that joins other variants on a replica, the share that makes the
# replica busy for longer. At low traffic it would have been busy all the same; at high traffic not.
BUSY_ANYWAY = 0.5
# A pool counts as full by this share at least: what runs at its peak takes places for certain.
FULLNESS_MIN = 0.25
# Of the streaming that a sequence shares with others, the share that goes on because it came: the
# fewer there are, the sooner the replica would have had nothing to do.
SUSTAINED = 0.5
# Share of a replica's places that batch work fills; the rest is for what can't wait.
BATCH_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost in US dollars; times in seconds from the moment of the decision."""

    cost_usd: float
    ttft_s: float
    tpot_s: float
    finish_s: float
    device_s: float
    """Device time before a later request can start, in seconds."""


def estimate(
    profile: Profile,
    option: Option,
    load: PoolLoad,
    *,
    transport_s: float,
    members: int = 1,
    wait_s: float = 0.0,
) -> Estimate:
    """Return what one of ``members`` like requests costs, sent together after ``wait_s``.

    Cost is the marginal device time, see `_decode_device_s`. Latencies are those of a pool whose
    replicas share its work evenly; the members' prefills follow each other, and other variants on
    the device take turns with this one (``load.round_s``).
    """
    roofline = option.roofline
    speed = load.speed_by_variant.get(option.variant, 1.0)
    replicas = max(1, load.workers) * option.replicas
    others = load.running_by_variant.get(option.variant, 0)
    sequences = min(option.max_batch, others // replicas + members)
    context_tokens = profile.input_tokens + profile.output_tokens // 2
    prefill_s = roofline.prefill_s(profile.input_tokens)
    decode_steps = max(0, profile.output_tokens - 1)
    step_s = roofline.step_s(sequences, sequences * context_tokens) if decode_steps else 0.0
    device_s = prefill_s / speed
    if decode_steps:
        together = min(option.max_batch, others + members)
        # Where nothing runs the two are one step; a router asks this for every candidate.
        together_s = step_s
        if together != sequences:
            together_s = roofline.step_s(together, together * context_tokens)
        added_s = _decode_device_s(option, load, members, together_s, fills_gaps=wait_s > 0)
        device_s += decode_steps * added_s / speed
    pace = speed * option.time_scale
    # The round of what runs holds a step of the variant's own already.
    others_s = max(0.0, load.round_s - running_step_s(option, load, others))
    tpot_s = step_s / pace + others_s
    slots = option.max_batch * replicas
    # Sequences that must end before there is a place, taken as alike and evenly spread in age.
    ahead = max(0, others + members - slots)
    slot_wait_s = ahead * max(1, profile.output_tokens) * tpot_s / slots
    ttft_s = (
        wait_s + transport_s + load.backlog_s + slot_wait_s + others_s + members * prefill_s / pace
    )
    return Estimate(
        cost_usd=device_s * option.usd_per_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        finish_s=ttft_s + decode_steps * tpot_s,
        device_s=prefill_s / pace,
    )


def _decode_device_s(
    option: Option, load: PoolLoad, members: int, together_s: float, *, fills_gaps: bool
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
    a step of the members with all that run on one replica, as far as it has places.
    """
    others = load.running_by_variant.get(option.variant, 0)
    together = min(option.max_batch, others + members)
    if others == 0:
        share = 1.0 if load.is_idle else BUSY_ANYWAY
        return share * together_s / min(members, together)
    alone_s = option.roofline.step_s(1, 0)
    growth_s = (together_s - alone_s) / together
    if fills_gaps:
        return growth_s
    slots = option.max_batch * max(1, load.workers) * option.replicas
    fullness = max(FULLNESS_MIN, min(1.0, others / slots))
    return growth_s + alone_s * max(fullness / option.max_batch, SUSTAINED / (others + 1))


def expected_cost_usd(estimate: Estimate, option: Option, policy: Policy) -> float:
    """Return the cost with that of the second try which a failure of this one would take."""
    return estimate.cost_usd * (1.0 + option.failure_rate * policy.retry_cost_weight)


def batch_limit(profile: Profile, option: Option, members_max: int) -> int:
    """Return how many requests like this one fill the device: by sequences or by KV memory."""
    tokens = max(1, profile.input_tokens + profile.output_tokens)
    return max(1, min(members_max, option.max_batch, option.kv_capacity_tokens // tokens))


def room(option: Option, load: PoolLoad) -> int:
    """Return how many sequences more fit beside those that run, without waking a replica.

    The pool gathers a variant's sequences (`policies.replica`), so those that run are taken to
    fill their replicas one after another, up to the share that batch work may take. Where none
    runs, a replica has to be woken anyway, and is free for the whole batch.
    """
    running = load.running_by_variant.get(option.variant, 0)
    if not running:
        return option.max_batch
    places = max(1, int(option.max_batch * BATCH_SHARE))
    return -running % places


def chance(profile: Profile, estimate: Estimate, *, elapsed_s: float, spread: float) -> float:
    """Return the chance of meeting deadline, TTFT and TPOT.

    The actual latency is taken as log-normal about the estimate, with ``spread`` the standard
    deviation of ln(actual / predicted). One error drives all three, so the least chance counts
    and not the product.

    Args:
        profile: whose SLO it is.
        estimate: latencies from now.
        elapsed_s: time since ``created_at``.
        spread: of past errors.
    """
    lowest = _below(estimate.finish_s, profile.deadline - profile.created_at - elapsed_s, spread)
    if profile.ttft_s is not None:
        lowest = min(lowest, _below(estimate.ttft_s, profile.ttft_s - elapsed_s, spread))
    if profile.tpot_s is not None and profile.output_tokens > 1:
        lowest = min(lowest, _below(estimate.tpot_s, profile.tpot_s, spread))
    return lowest


def _below(predicted_s: float, limit_s: float, spread: float) -> float:
    if limit_s <= 0:
        return 0.0
    if predicted_s <= 0:
        return 1.0
    return 0.5 * (1.0 + math.erf(math.log(limit_s / predicted_s) / (spread * SQRT2)))


def candidate(
    option: Option, path: CandidatePath, found: Estimate, likely: float, elapsed_s: float
) -> Candidate:
    """Return an estimate as evidence shows it: latencies count from ``created_at``."""
    return Candidate(
        pool=option.pool,
        model_variant=option.variant,
        precision=option.precision,
        region=option.region,
        path=path,
        cost_usd=found.cost_usd,
        ttft_s=elapsed_s + found.ttft_s,
        finish_s=elapsed_s + found.finish_s,
        tpot_s=found.tpot_s,
        chance=likely,
    )
