"""The chunks of prompts that an iteration computes beside what decodes."""

from bisect import bisect_right
from collections.abc import Sequence
from math import inf

from policies.hardware.iteration import Chunk, JobState, VariantQueue

# Prompt tokens that one iteration computes beside the decodes (vLLM's default on large GPUs).
PREFILL_CHUNK_TOKENS = 2048
# The least part of a prompt that is computed where what decodes has no time for it: so each prompt
# comes to its end. By replays of bursty traces with 16, 32, 64, 128 and 256.
SHORT_CHUNK_TOKENS = 128


def spare_s(lanes: Sequence[VariantQueue], lane: VariantQueue, now: float) -> float:
    """Return the longest that a lane's iteration may take for the TPOT of what decodes.

    As if each reply ended with its next token, since nobody knows which does. Before the token of
    another lane come the turns of those between and its own, each with a short chunk: a prompt may
    have come by then.
    """
    limit_s, others_s = lane.token_due_at() - now, 0.0
    for other in (*lanes[lane.index + 1 :], *lanes[: lane.index]):
        if other.decoding or other.prefilling or other.queue:
            step = len(other.decoding), other.context_tokens, SHORT_CHUNK_TOKENS
            others_s += other.roofline.step_s(*step)
            limit_s = min(limit_s, other.token_due_at() - now - others_s)
    return limit_s


def fitting_tokens(
    lane: VariantQueue, chunks: list[Chunk], state: JobState, tokens: int, limit_s: float
) -> int:
    """Return how many of a prompt's next tokens an iteration computes beside its other chunks.

    What exceeds the time of the iteration waits, since a prompt that is cut takes its overhead
    twice. Only the first prompt is cut, to no less than a short chunk.
    """
    if limit_s == inf or lane.mixed_s([*chunks, (state, tokens)]) <= limit_s:
        return tokens
    if chunks:
        return 0
    fits = bisect_right(range(1, tokens), limit_s, key=lambda part: lane.mixed_s([(state, part)]))
    return min(tokens, max(fits, SHORT_CHUNK_TOKENS))
