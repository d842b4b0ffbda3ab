"""A device's constants by measured points, fitted from a prior; the error on points held out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from policies.config.hardware import Device, Model, Precision
from policies.config.rooflines import roofline_of
from policies.config.serving import Serving
from policies.hardware.closed_loop import Means, closed_loop
from policies.hardware.constants import FACTOR_MAX
from policies.hardware.roofline import LAYER_OVERHEAD_S
from shunter.hardware.least_squares import solved, weighted_product
from shunter.hardware.sweep import Point

# The constants that are fitted, each as a factor in its logarithm.
FITTED = (
    "compute_share",
    "bandwidth_share",
    "layer_us",
    "sequence_layer_us",
    "prompt_layer_us",
    "first_token_ms",
)
# They stay near the declared ones where the points say nothing: a deviation of this weighs like
# one of `ODD` in a point.
PRIOR, ODD = 1.5, 0.1
STEP, STEPS_MAX, IMPROVEMENT = 0.02, 40, 1e-4
# What a device is taken for that no server's constants are known of: a CPU.
PLAIN = {
    "compute_share": 1.0,
    "experts_share": 1.0,
    "layer_us": LAYER_OVERHEAD_S * 1e6,
    "expert_layer_us": 0.0,
    "sequence_layer_us": 30.0,
    "prompt_layer_us": 10.0,
    "all_reduce_us": 0.0,
    "link_share": 1.0,
    "first_token_ms": 2.0,
}
ERROR_MIN = 0.05
# Every so many points one is held out of the fit.
HOLD_OUT = 3


@dataclass(frozen=True, slots=True)
class Case:
    """A measured case: a variant on a replica of a device as declared."""

    device: Device
    model: Model
    precision: Precision
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class PredictedPoint:
    """A point with its prediction; ``is_held_out`` of one that the fit has not seen."""

    point: Point
    predicted: Means
    is_held_out: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """The device with what was measured of it, and each point by it."""

    device: Device
    points: list[PredictedPoint]

    def errors(self) -> tuple[float, float]:
        """Return the median errors of TTFT and TPOT on the points held out, as shares."""
        logs = [_logs(each.point, each.predicted) for each in self.points if each.is_held_out]
        return (
            median(abs(math.expm1(ttft)) for ttft, _ in logs),
            median(abs(math.expm1(tpot)) for _, tpot in logs if tpot is not None),
        )


def calibrate(case: Case, points: Sequence[Point], measured: str) -> Calibration:
    """Return the device with constants fitted to two thirds of the points.

    Args:
        case: what ran; constants that the device declares are the prior.
        points: at least six, in the order of their measurement.
        measured: in words, what the device was held against.

    Raises:
        ValueError: too few points, or a model that doesn't fit in the device's memory.
    """
    if len(points) < 2 * HOLD_OUT:
        raise ValueError(f"{len(points)} points are too few to hold some out: give 6 or more")
    start = case.device.serving or Serving(
        **PLAIN,
        bandwidth_share=case.device.bandwidth_efficiency,
        error=1.0,
        error_datasheet=1.0,
        error_assumed=1.0,
    )
    held_out = [at % HOLD_OUT == HOLD_OUT - 1 for at in range(len(points))]
    seen = [point for point, out in zip(points, held_out, strict=True) if not out]
    serving = _moved(start, _fit(case, start, seen))
    checked = [
        PredictedPoint(point, _predicted(case, serving, point), out)
        for point, out in zip(points, held_out, strict=True)
    ]
    logs = [
        log for each in checked if each.is_held_out for log in _logs(each.point, each.predicted)
    ]
    known = [log for log in logs if log is not None]
    error = round(max(ERROR_MIN, math.sqrt(sum(log * log for log in known) / len(known))), 3)
    serving = serving.model_copy(
        update={
            "error": min(1.0, error),
            "error_datasheet": min(1.0, error),
            "error_assumed": min(1.0, error),
            "source": measured,
        }
    )
    device = case.device.model_copy(update={"serving": serving, "measured": measured})
    return Calibration(device, checked)


def at_bound(before: Device, after: Device) -> list[str]:
    """Return what of a device is faster than its declaration allows, as advice."""
    serving = after.serving
    if serving is None:
        return []
    told = []
    if serving.bandwidth_share >= 1.0:
        told.append(f"memory is faster than {before.memory_bandwidth_tb_s:g} TB/s: declare more")
    if after.compute_efficiency * serving.compute_share >= 1.0:
        told.append("arithmetic is faster than the declared tflops: declare more")
    return told


def _moved(start: Serving, logs: Sequence[float]) -> Serving:
    most = {"compute_share": 2.0, "bandwidth_share": 1.0}
    changed = {
        name: float(f"{min(most.get(name, 1e5), getattr(start, name) * math.exp(log)):.4g}")
        for name, log in zip(FITTED, logs, strict=True)
    }
    # Latencies of the same kind as that of a layer.
    scale = math.exp(logs[FITTED.index("layer_us")])
    for name in ("expert_layer_us", "all_reduce_us"):
        changed[name] = float(f"{getattr(start, name) * scale:.4g}")
    return start.model_copy(update=changed)


def _predicted(case: Case, serving: Serving, point: Point) -> Means:
    device = case.device.model_copy(update={"serving": serving})
    roofline = roofline_of(device, case.model, case.precision, case.tensor_parallel)
    latency_s = serving.first_token_ms / 1000
    return closed_loop(roofline, latency_s, point.lengths, point.asked.concurrency)


def _logs(point: Point, found: Means) -> tuple[float, float | None]:
    tpot = math.log(found.tpot_s / point.tpot_s) if point.tpot_s and found.tpot_s else None
    return math.log(found.ttft_s / point.ttft_s), tpot


def _residuals(
    case: Case, start: Serving, points: Sequence[Point], logs: Sequence[float]
) -> list[float]:
    serving = _moved(start, logs)
    found = [log for point in points for log in _logs(point, _predicted(case, serving, point))]
    prior = [log / PRIOR * ODD for log in logs]
    return [log for log in found if log is not None] + prior


def _loss(residuals: Sequence[float]) -> float:
    return sum(math.sqrt(1 + (each / ODD) ** 2) - 1 for each in residuals)


def _fit(case: Case, start: Serving, points: Sequence[Point]) -> list[float]:
    """Return the logarithms of the factors: Levenberg-Marquardt on a robust loss."""
    logs, damping = [0.0] * len(FITTED), 1e-3
    found = _residuals(case, start, points, logs)
    limit = math.log(FACTOR_MAX) * 2
    for _ in range(STEPS_MAX):
        columns = []
        for at in range(len(logs)):
            aside = [each + STEP * (at == n) for n, each in enumerate(logs)]
            after = _residuals(case, start, points, aside)
            columns.append([(b - a) / STEP for a, b in zip(found, after, strict=True)])
        weights = [1 / math.sqrt(1 + (each / ODD) ** 2) for each in found]
        normal = [[weighted_product(a, b, weights) for b in columns] for a in columns]
        for at in range(len(logs)):
            normal[at][at] *= 1 + damping
            normal[at][at] += 1e-9
        step = solved(normal, [-weighted_product(column, found, weights) for column in columns])
        moved = [min(limit, max(-limit, a + b)) for a, b in zip(logs, step, strict=True)]
        after = _residuals(case, start, points, moved)
        if _loss(after) >= _loss(found):
            damping *= 10
            if damping > 1e6:
                break
            continue
        better = _loss(found) - _loss(after)
        logs, found, damping = moved, after, max(1e-6, damping / 5)
        if better < IMPROVEMENT * _loss(found):
            break
    return logs
