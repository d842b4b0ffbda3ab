"""Factors on the constants of a device: what its servers really take, as the declared ones say it.

Five of them stand for everything that a roofline is made of, so that a pool which is slow in one
way is not taken for slow in all.
"""

from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from policies.hardware.roofline import Roofline

# A factor beyond this says that the declaration is of another device.
FACTOR_MAX = 64.0


class Factors(NamedTuple):
    """Times over declared times: 1.0 is as declared, 2.0 takes twice as long.

    Attributes:
        compute: arithmetic, and the traffic between devices, which grow with the tokens computed.
        memory: reading weights and cache.
        step: of each iteration, and of each sequence in it, beside both.
        prompt: of each prompt or chunk of one, beside all that.
        first_token: of each request, beside the device.
    """

    compute: float = 1.0
    memory: float = 1.0
    step: float = 1.0
    prompt: float = 1.0
    first_token: float = 1.0


AS_DECLARED = Factors()


def believable(told: object) -> Factors | None:
    """Return factors that somebody told, within bounds; None if they are none."""
    if not isinstance(told, (tuple, list)) or len(told) != len(AS_DECLARED):
        return None
    if not all(isinstance(each, (int, float)) and isfinite(each) and each > 0 for each in told):
        return None
    return Factors(*(min(FACTOR_MAX, max(1 / FACTOR_MAX, each)) for each in told))


def corrected(roofline: Roofline, factors: Factors) -> Roofline:
    """Return the roofline whose parts take so many times as long."""
    if factors == AS_DECLARED:
        return roofline
    return replace(
        roofline,
        compute_efficiency=roofline.compute_efficiency / factors.compute,
        traffic_token_s=roofline.traffic_token_s * factors.compute,
        bandwidth_efficiency=roofline.bandwidth_efficiency / factors.memory,
        step_overhead_s=roofline.step_overhead_s * factors.step,
        sequence_overhead_s=roofline.sequence_overhead_s * factors.step,
        prompt_overhead_s=roofline.prompt_overhead_s * factors.prompt,
    )


def at_speed(roofline: Roofline, factor: float) -> Roofline:
    """Return the roofline of a device ``factor`` times as fast."""
    return replace(
        roofline,
        flops=roofline.flops * factor,
        bandwidth_bytes_per_s=roofline.bandwidth_bytes_per_s * factor,
        step_overhead_s=roofline.step_overhead_s / factor,
        traffic_token_s=roofline.traffic_token_s / factor,
        sequence_overhead_s=roofline.sequence_overhead_s / factor,
        prompt_overhead_s=roofline.prompt_overhead_s / factor,
    )
