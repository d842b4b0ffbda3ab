"""The choice among a pool's replicas."""

from collections.abc import Sequence
from itertools import islice

from policies.hardware.replica import OWN_REPLICA_SHARE, USUAL, Ask, FillLimits, Replica
from policies.hardware.variant_homes import VariantHomes

# What is tried in turn where no replica has the room of the one before. By replays of the busiest
# 40 s of the open trace at rate 10, on 13 to 15 rented replicas: with these two fewer miss by half.
# The prompts ahead are by replays of that stretch on 8, with 0.05 to 0.6 s.
LESS_ROOM = (FillLimits(0.8, 0.7, 0.8), FillLimits(0.95, 0.95, 0.95, ahead_s=0.1))
# Replicas that have space for a session and are weighed against the one that work would gather on.
SPACES = 2


def choose_replica(
    replicas: Sequence[Replica],
    ask: Ask,
    now: float,
    usual: FillLimits = USUAL,
    homes: VariantHomes | None = None,
) -> int:
    """Return the index of the replica that should serve a request now, with room for it or not."""
    index = find_room(replicas, ask, now, usual, homes)
    return least_loaded(replicas, ask, homes) if index is None else index


def find_room(
    replicas: Sequence[Replica],
    ask: Ask,
    now: float,
    usual: FillLimits = USUAL,
    homes: VariantHomes | None = None,
) -> int | None:
    """Return the replica with room for a request, by its index; None if none has any.

    In a full pool those come first that are its variant's by ``homes``; no others serve the variant
    whose steps take longest.
    """
    own = None if homes is None else homes.of(ask.variant)
    if homes is None or own is None:
        return _room_among(replicas, range(len(replicas)), ask, now, usual)
    index = _room_among(replicas, own, ask, now, usual)
    if index is not None or ask.variant == homes.longest:
        return index
    others = [each for each in range(len(replicas)) if each not in own]
    return _room_among(replicas, others, ask, now, usual)


def _room_among(
    replicas: Sequence[Replica], among: Sequence[int], ask: Ask, now: float, usual: FillLimits
) -> int | None:
    """Return the one of some replicas with room for a request.

    Work gathers: a replica that decodes the variant already takes one more sequence for the price
    of its own tokens, one that is busy with another streams that variant's weights as well, and an
    idle one runs for it alone. So the fullest of the first kind that still meets every SLO on it
    is chosen, then of the second, then an idle one. If a variant's sequences would fill a replica,
    the idle one comes before the mixed one: on a replica shared by many variants, each step waits
    for those of the others. If none can take the request, the same is tried with less room to spare
    for what comes later.

    A busy replica that has the session's keys and values comes before all. An idle one that has
    them comes before company if the request adds less device time there: a long prefix is worth
    more than what company saves, a short one isn't. The same holds for one with space for what the
    session leaves, where the prefixes of others would have to give way to it.
    """
    same = [replica.accelerator.jobs_of(ask.variant) for replica in replicas]
    is_much = sum(same) >= OWN_REPLICA_SHARE * replicas[0].accelerator.max_batch_of(ask.variant)

    def rank(index: int) -> tuple[int, bool, int, int]:
        jobs = replicas[index].jobs
        return (-same[index], is_much and jobs > 0, -jobs, index)

    order = sorted(among, key=rank)
    keeps = [i for i in order if replicas[i].cached_tokens(ask.variant, ask.session)]
    keeps = [index for index in keeps if replicas[index].can_take(ask, now, usual)]
    busy = next((index for index in keeps if replicas[index].jobs), None)
    if busy is not None:
        return busy
    best = next((index for index in order if replicas[index].can_take(ask, now, usual)), None)
    if best is not None:
        if ask.session is not None and replicas[best].displaced_s(ask):
            keeps += _with_space(replicas, order, ask, now, usual)
        return min([best, *keeps], key=lambda i: replicas[i].price_s(ask)) if keeps else best
    for less in LESS_ROOM:
        limits = FillLimits(*map(max, usual, less))
        best = next((i for i in order if replicas[i].can_take(ask, now, limits)), None)
        if best is not None:
            return best
    return None


def least_loaded(replicas: Sequence[Replica], ask: Ask, homes: VariantHomes | None = None) -> int:
    """Return the index of the replica with the least prompts to compute, where none has room.

    Those that have the variant come first: to spread it would have all variants slow down each
    other. In a full pool those come first that are its own, for the variant whose steps take
    longest; the steps of others cost little wherever they are.
    """
    tokens = ask.input_tokens + ask.output_tokens
    own = None if homes is None else homes.of(ask.variant)

    def load(index: int) -> tuple[bool, bool, float, int, int]:
        replica = replicas[index]
        has_room = replica.accelerator.has_room(ask.variant, tokens)
        if homes is None or own is None:
            is_other = not replica.accelerator.jobs_of(ask.variant)
        else:
            is_other = ask.variant == homes.longest and index not in own
        return (not has_room, is_other, replica.ahead_s(ask.due_at), replica.jobs, index)

    return min(range(len(replicas)), key=load)


def _with_space(
    replicas: Sequence[Replica], order: Sequence[int], ask: Ask, now: float, usual: FillLimits
) -> list[int]:
    """Return the first replicas that can take the request and have space for what it leaves."""
    spacious = (index for index in order if not replicas[index].displaced_s(ask))
    able = (index for index in spacious if replicas[index].can_take(ask, now, usual))
    return list(islice(able, SPACES))
