"""A closed loop's schedule has the means of the loop, by constants it was not simulated with."""

from dataclasses import replace

import pytest
from accelerator_cases import LLAMA_8B, TIGHT_BYTES

from benchmarks.schedules import Schedules, schedule
from policies.hardware.closed_loop import closed_loop
from policies.hardware.roofline import Roofline

LOOPS = [
    ([(1000, 101)] * 3, 1),
    ([(2048 + 70 * n, 2 + 37 * n) for n in range(20)], 4),
    ([(300, 200 + n % 7) for n in range(40)], 16),
    ([(3000, 1)] * 3 + [(40, 900)] * 3, 2),
]
EXPERTS = replace(LLAMA_8B, active_weights_bytes=LLAMA_8B.weights_bytes / 8)
# Attention dear enough that a long reply begins bound by memory and ends bound by arithmetic.
CROSSING = replace(LLAMA_8B, attention_width=5000 * LLAMA_8B.attention_width)


@pytest.mark.parametrize("memory_bytes", [LLAMA_8B.memory_bytes, TIGHT_BYTES])
@pytest.mark.parametrize("variant", [LLAMA_8B, EXPERTS, CROSSING])
def test_a_schedule_has_the_means_of_its_loop_by_other_constants(
    variant: Roofline, memory_bytes: float
) -> None:
    simulated = replace(variant, memory_bytes=memory_bytes)
    others = [
        replace(
            simulated,
            compute_efficiency=0.3,
            bandwidth_efficiency=0.2 + 0.2 * number,
            step_overhead_s=1e-3 * number,
            traffic_token_s=1e-6,
            sequence_overhead_s=1e-4,
            prompt_overhead_s=5e-3,
        )
        for number in range(len(LOOPS))
    ]
    schedules = Schedules([schedule(simulated, *each) for each in LOOPS])
    for other, (lengths, clients), found in zip(
        others, LOOPS, schedules.means(others, 0.03), strict=True
    ):
        assert found == pytest.approx(closed_loop(other, 0.03, lengths, clients), rel=1e-9)
