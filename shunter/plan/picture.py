"""The curve of a plan: what attainment costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from shunter.plan.search import JudgedFleet
from shunter.render.figure import new_figure, save_figure


def draw(
    path: Path, curve: Sequence[JudgedFleet], best: JudgedFleet, bounds: Mapping[str, float]
) -> None:
    """Write a picture of the fleets that no cheaper one matches, the plan and bounds.

    Args:
        path: PNG or SVG to write.
        curve: the fleets.
        best: the plan.
        bounds: dollars an hour, by name.

    Raises:
        UserError: matplotlib is missing, or the file can't be written.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    axes.step(
        [each.usd_per_hour for each in curve],
        [100 * each.usual.attainment for each in curve],
        where="post",
        marker="o",
        label="fleets judged",
    )
    axes.plot(best.usd_per_hour, 100 * best.usual.attainment, "*", markersize=14, label="plan")
    for (name, usd), style in zip(bounds.items(), ("--", ":"), strict=True):
        axes.axvline(usd, color="black", linestyle=style, label=name)
    axes.set_xlabel("US dollars an hour, rented")
    axes.set_ylabel("SLO attained, % of requests")
    axes.legend()
    save_figure(figure, path)
