"""The plot of a backtest: cost by pool, attainment by class, and the bound."""

from collections.abc import Sequence
from pathlib import Path

from shunter.backtest.suite import Scored
from shunter.render.figure import new_figure, save_figure

TASKS_WIDTH = 0.8
"""The width of a run's classes beside each other, where that of a run is 1."""


def draw(path: Path, scored: Sequence[Scored], lower_bound_usd: float | None) -> None:
    """Write a picture of all runs.

    Raises:
        UserError: matplotlib is missing, or the file can't be written.
    """
    figure = new_figure(11, 7)
    money, attained = figure.subplots(2, 1, sharex=True)
    places = range(len(scored))
    pools = sorted({pool for each in scored for pool in each.scores["usd_by_pool"]})
    bottom = [0.0] * len(scored)
    for pool in pools:
        usd = [each.scores["usd_by_pool"].get(pool, 0.0) for each in scored]
        money.bar(places, usd, bottom=bottom, label=pool)
        bottom = [low + high for low, high in zip(bottom, usd, strict=True)]
    if lower_bound_usd is not None:
        money.axhline(lower_bound_usd, color="black", linestyle="--", label="lower bound")
    money.set_ylabel("US dollars of busy device time")
    # Room for the legend above the highest.
    money.margins(y=0.35)
    money.legend(loc="upper right", fontsize="small", ncols=4)
    tasks = sorted({task for each in scored for task in each.scores["slo_by_task"]})
    for number, task in enumerate(tasks):
        shares = [100 * (each.scores["slo_by_task"].get(task) or 0.0) for each in scored]
        # Beside each other: most have all of their requests in time, and would cover one another.
        aside = TASKS_WIDTH * ((number + 0.5) / len(tasks) - 0.5)
        at = [place + aside for place in places]
        attained.plot(at, shares, marker="o", markersize=4, linestyle="none", label=task)
    attained.set_ylabel("SLO attained, % of requests")
    attained.legend(fontsize="small", ncols=3)
    attained.set_xticks(places, [each.name for each in scored], rotation=20)
    save_figure(figure, path)
