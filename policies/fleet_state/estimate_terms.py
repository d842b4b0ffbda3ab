"""Terms of estimates: what of them depends on a pool's load, and on no request."""

from typing import NamedTuple


class DecodeStep(NamedTuple):
    """A decode step of several sequences, without their contexts: seconds of compute and memory."""

    sequences: int
    compute_s: float
    memory_s: float


class EstimateTerms(NamedTuple):
    """Terms of a standing for estimates of a given number of members. Times in seconds.

    They are the same for every request until the pool's load changes; a router needs them for
    every candidate of every request. One level, so that an estimate takes all of them at once.

    Attributes:
        token_s: to compute a token, without its attention.
        pair_s: to compute the attention of a (query, key) pair.
        weights_s: to stream all weights.
        kv_token_s: to read the keys and values of a token.
        untouched_share: share of the weights that one token does not touch.
        overhead_s: of each iteration.
        traffic_s: of exchange between devices for a token computed.
        begin_s: overhead of an iteration that holds prompt tokens.
        spread: a step of the sequences on one replica, if the pool spreads its work evenly.
        gathered: the same if the pool gathers them.
        woken: the members' share of a whole step if nothing of the variant runs, else 0.
        sharers: sequences that share a step: the members, or all that run with them.
        base_s: part of a step that is streamed anyway, if something of the variant runs.
        sustained_s: the member's share of that.
        ahead: sequences that must end before there is a place.
        slots: places of all replicas.
        kv_missing: the share of the pool's KV memory that is missing (negative: free) before these
            members come.
        kv_token_share: the share that they need per token.
        speed: predicted device time over charged.
        pace: the speed at which latencies pass.
        usd_per_s: price of one replica's time.
        backlog_s: device time before a request can start.
        others_s: time of one iteration of the other variants on its replica, if the pool spreads
            its work evenly.
        crowd: a step of the sequences on the fullest replica of a pool that gathers its work; None
            where it doesn't, and where nobody is met there.
        mixed_s: time of one iteration of the other variants there.
        usual_s: measured time of a request to the pool.
        usual_known: the measured part of that, 0 to 1.
    """

    token_s: float
    pair_s: float
    weights_s: float
    kv_token_s: float
    untouched_share: float
    overhead_s: float
    traffic_s: float
    begin_s: float
    spread: DecodeStep
    gathered: DecodeStep
    woken: float
    sharers: int
    base_s: float
    sustained_s: float
    ahead: int
    slots: int
    kv_missing: float
    kv_token_share: float
    speed: float
    pace: float
    usd_per_s: float
    backlog_s: float
    others_s: float
    crowd: DecodeStep | None
    mixed_s: float
    usual_s: float
    usual_known: float
