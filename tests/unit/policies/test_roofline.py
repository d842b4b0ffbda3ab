"""The roofline against hand calculation, its own sums, and what physics allows."""

from dataclasses import replace

import accelerator_cases
import pytest
from accelerator_cases import rooflines
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.hardware.roofline import LAYER_OVERHEAD_S, UNLIMITED_TOKENS, Roofline

# Llama-3.1-8B in BF16 on an H100 SXM.
LLAMA_8B = replace(accelerator_cases.LLAMA_8B, step_overhead_s=32 * LAYER_OVERHEAD_S)
# Qwen3-30B-A3B in BF16 on the same: a mixture of experts.
QWEN_MOE = replace(
    LLAMA_8B,
    weights_bytes=61e9,
    active_weights_bytes=6.6e9,
    active_parameters=3.3e9,
    kv_bytes_per_token=98304,
    layers=48,
)
# A board with slow memory and long contexts: attention FLOPs outgrow cache reads on the way.
FLIPPING = replace(LLAMA_8B, flops=20e12, kv_bytes_per_token=1024, attention_width=8192)

tokens = st.integers(1, 200_000)
unhurried = settings(deadline=None)  # a busy machine is not a failure


def test_one_decoded_token_streams_the_weights_and_its_context() -> None:
    expected_s = (16.06e9 + 1000 * 131072) / (3.35e12 * 0.6) + 96e-6
    assert LLAMA_8B.step_s(1, 1000) == pytest.approx(expected_s, rel=1e-12)


def test_a_long_prompt_is_bound_by_compute_with_causal_attention() -> None:
    flop = 2 * 8.03e9 * 8000 + 4 * 4096 * 32 * 8000**2 / 2
    assert LLAMA_8B.prefill_s(8000) == pytest.approx(flop / (989e12 * 0.7) + 96e-6, rel=1e-12)


def test_cached_prompt_tokens_cost_only_attention_over_them() -> None:
    flop = 2 * 8.03e9 * 3000 + 4 * 4096 * 32 * 3000 * (1500 + 5000)
    expected_s = flop / (989e12 * 0.7) + 96e-6
    assert LLAMA_8B.prefill_s(8000, 5000) == pytest.approx(expected_s, rel=1e-12)


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    assert LLAMA_8B.prefill_s(500, 500) == LLAMA_8B.prefill_s(500, 499) == LLAMA_8B.step_s(1, 499)


def test_compute_hides_behind_memory_traffic() -> None:
    assert LLAMA_8B.step_s(8, 8000, 64) == LLAMA_8B.step_s(8, 8000)


def test_attention_can_be_left_out() -> None:
    plain = replace(LLAMA_8B, attention_width=0)
    assert plain.prefill_s(8000) == pytest.approx(2 * 8.03e9 * 8000 / (989e12 * 0.7) + 96e-6)


def test_experts_are_touched_by_and_by() -> None:
    reached_bytes_per_s = 3.35e12 * 0.6
    one_s = QWEN_MOE.step_s(1, 0) - QWEN_MOE.step_overhead_s
    many_s = QWEN_MOE.step_s(100, 0) - QWEN_MOE.step_overhead_s
    assert one_s == pytest.approx(6.6e9 / reached_bytes_per_s)
    assert many_s == pytest.approx(61e9 / reached_bytes_per_s, rel=1e-3)
    assert one_s < QWEN_MOE.step_s(4, 0) - QWEN_MOE.step_overhead_s < many_s


def test_kv_capacity_is_nine_tenths_of_memory_less_weights() -> None:
    assert LLAMA_8B.kv_capacity_tokens(16.06e9) == int((72e9 - 16.06e9) / 131072)
    assert LLAMA_8B.kv_capacity_tokens(90e9) == 0
    encoder = replace(LLAMA_8B, kv_bytes_per_token=0)
    assert encoder.kv_capacity_tokens(16.06e9) == UNLIMITED_TOKENS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flops", 0),
        ("weights_bytes", -1.0),
        ("memory_bytes", float("nan")),
        ("bandwidth_efficiency", 0),
        ("step_overhead_s", -1e-6),
        ("active_weights_bytes", 17e9),
    ],
)
def test_an_impossible_figure_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Roofline.{field}"):
        replace(LLAMA_8B, **{field: value})


@unhurried
@given(rooflines, tokens, st.integers(0, 1000), st.integers(0, 200_000))
def test_more_prompt_never_takes_less_time(
    roofline: Roofline, prompt: int, more: int, cached: int
) -> None:
    cached = min(cached, prompt)
    assert roofline.prefill_s(prompt + more, cached) >= roofline.prefill_s(prompt, cached)


@unhurried
@given(
    rooflines,
    st.tuples(st.integers(0, 512), st.integers(0, 10**6), st.integers(0, 8192)),
    st.tuples(st.integers(0, 64), st.integers(0, 10**5), st.integers(0, 512)),
)
def test_more_work_never_makes_a_shorter_step(
    roofline: Roofline, work: tuple[int, int, int], more: tuple[int, int, int]
) -> None:
    larger = tuple(a + b for a, b in zip(work, more, strict=True))
    assert roofline.step_s(*larger) >= roofline.step_s(*work)


@unhurried
@given(
    rooflines | st.sampled_from([LLAMA_8B, QWEN_MOE, FLIPPING]),
    st.integers(1, 256),
    st.integers(0, 100_000),
    st.integers(0, 400),
)
def test_a_run_of_steps_is_the_sum_of_its_steps(
    roofline: Roofline, sequences: int, context_tokens: int, steps: int
) -> None:
    stepped_s = sum(
        roofline.step_s(sequences, context_tokens + sequences * step) for step in range(steps)
    )
    run_s = roofline.decode_run_s(sequences, context_tokens, steps)
    assert run_s == pytest.approx(stepped_s, rel=1e-9)


@pytest.mark.parametrize("swap", [False, True])
def test_a_run_that_changes_from_one_bound_to_the_other_is_still_exact(swap: bool) -> None:
    roofline = FLIPPING
    if swap:  # starts bound by compute, ends bound by memory
        roofline = replace(LLAMA_8B, flops=1.5e12, attention_width=0, bandwidth_bytes_per_s=2e12)
    first_bound, last_bound = (
        replace(roofline, bandwidth_bytes_per_s=1e30).step_s(1, context)
        == roofline.step_s(1, context)
        for context in (0, 200_000)
    )
    assert (first_bound, last_bound) == (swap, not swap)  # True: bound by compute
    stepped_s = sum(roofline.step_s(1, step) for step in range(200_001))
    assert roofline.decode_run_s(1, 0, 200_001) == pytest.approx(stepped_s, rel=1e-9)


def test_a_run_that_begins_at_the_ridge_follows_the_steeper_bound() -> None:
    ridge = replace(
        LLAMA_8B,
        weights_bytes=1e9,
        active_weights_bytes=1e9,
        active_parameters=5e8,
        attention_width=0,
        flops=1e12,
        bandwidth_bytes_per_s=1e12,
        compute_efficiency=1,
        bandwidth_efficiency=1,
        step_overhead_s=0,
    )
    expected_s = 1e-3 + (1e-3 + 131072 / 1e12)
    assert ridge.decode_run_s(1, 0, 2) == pytest.approx(expected_s, rel=1e-12)


def test_decoding_begins_after_the_token_that_prefill_yields() -> None:
    assert LLAMA_8B.decode_s(1, 4, 700) == 0
    assert LLAMA_8B.decode_s(0, 4, 700) == 0
    expected_s = LLAMA_8B.step_s(4, 4 * 701) + LLAMA_8B.step_s(4, 4 * 702)
    assert LLAMA_8B.decode_s(3, 4, 700) == pytest.approx(expected_s)
