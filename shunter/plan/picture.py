"""The curve of a plan: what attainment costs."""

from collections.abc import Sequence
from pathlib import Path

from shunter.console import UserError
from shunter.plan.search import JudgedFleet


def draw(
    path: Path, curve: Sequence[JudgedFleet], best: JudgedFleet, bound_usd_per_hour: float
) -> None:
    """Write a picture of the fleets that no cheaper one matches, the plan and the bound.

    Raises:
        UserError: matplotlib is missing, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'shunter[backtest]'") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.step(
        [each.usd_per_hour for each in curve],
        [100 * each.usual.attainment for each in curve],
        where="post",
        marker="o",
        label="fleets judged",
    )
    axes.plot(best.usd_per_hour, 100 * best.usual.attainment, "*", markersize=14, label="plan")
    axes.axvline(bound_usd_per_hour, color="black", linestyle="--", label="bound")
    axes.set_xlabel("US dollars an hour, rented")
    axes.set_ylabel("SLO attained, % of requests")
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be written: {error}") from error
