"""A closed loop: what clients measure of a replica that serves nothing else."""

from dataclasses import replace

import pytest
from accelerator_cases import LLAMA_8B, TIGHT_BYTES

from policies.hardware.closed_loop import closed_loop

MEASURED = replace(
    LLAMA_8B,
    step_overhead_s=1e-3,
    traffic_token_s=1e-6,
    sequence_overhead_s=1e-4,
    prompt_overhead_s=5e-3,
)


def test_one_client_waits_for_nobody() -> None:
    found = closed_loop(MEASURED, 0.03, [(1000, 101)] * 3, clients=1)
    assert found.ttft_s == pytest.approx(0.03 + MEASURED.prefill_s(1000))
    assert found.tpot_s == pytest.approx(MEASURED.decode_s(101, 1, 1000) / 100)


def test_clients_that_begin_together_wait_for_each_others_prompts() -> None:
    alone = closed_loop(MEASURED, 0.0, [(2048, 50)], clients=1)
    together = closed_loop(MEASURED, 0.0, [(2048, 50)] * 4, clients=4)
    # One chunk each, the later ones beside decodes of the earlier.
    assert 2.5 * alone.ttft_s < together.ttft_s < 3 * alone.ttft_s
    assert together.tpot_s > alone.tpot_s


def test_a_client_sends_its_next_request_when_the_last_is_answered() -> None:
    once = closed_loop(MEASURED, 0.0, [(500, 20)] * 4, clients=4)
    often = closed_loop(MEASURED, 0.0, [(500, 20)] * 40, clients=4)
    # A tenth of the requests come together with three others at the start, and all since they are
    # alike: were they all sent at the start, the last would wait for dozens of replies.
    assert often.ttft_s == pytest.approx(once.ttft_s, rel=0.5)


def test_memory_alone_makes_a_client_wait() -> None:
    tight = replace(MEASURED, memory_bytes=TIGHT_BYTES)
    lengths = [(3000, 400)] * 12
    assert (
        closed_loop(tight, 0.0, lengths, 12).ttft_s
        > 2 * closed_loop(MEASURED, 0.0, lengths, 12).ttft_s
    )


def test_the_tokens_of_a_reply_of_one_have_no_time_between_them() -> None:
    assert closed_loop(MEASURED, 0.0, [(100, 1)], 1).tpot_s == 0.0


def test_what_never_fits_and_nothing_at_all_are_refused() -> None:
    tight = replace(MEASURED, memory_bytes=TIGHT_BYTES)
    with pytest.raises(ValueError, match="KV memory"):
        closed_loop(tight, 0.0, [(100_000, 10)], 1)
    with pytest.raises(ValueError, match="no request"):
        closed_loop(MEASURED, 0.0, [], 1)
    with pytest.raises(ValueError, match="weights"):
        closed_loop(replace(MEASURED, memory_bytes=1e9), 0.0, [(1, 1)], 1)
