"""The plot of a backtest: cost by pool, attainment by class, and the bound."""

from collections.abc import Sequence
from pathlib import Path

from shunter.backtest.suite import Scored
from shunter.render.figure import new_figure, save_figure


def draw(path: Path, scored: Sequence[Scored], lower_bound_usd: float | None) -> None:
    """Write a picture of all runs.

    Raises:
        UserError: matplotlib is missing, or the file can't be written.
    """
    figure = new_figure(11, 7)
    money, attained = figure.subplots(2, 1, sharex=True)
    names = [each.name for each in scored]
    pools = sorted({pool for each in scored for pool in each.scores["usd_by_pool"]})
    bottom = [0.0] * len(scored)
    for pool in pools:
        usd = [each.scores["usd_by_pool"].get(pool, 0.0) for each in scored]
        money.bar(names, usd, bottom=bottom, label=pool)
        bottom = [low + high for low, high in zip(bottom, usd, strict=True)]
    if lower_bound_usd is not None:
        money.axhline(lower_bound_usd, color="black", linestyle="--", label="lower bound")
    money.set_ylabel("US dollars of busy device time")
    money.legend(fontsize="small", ncols=2)
    tasks = sorted({task for each in scored for task in each.scores["slo_by_task"]})
    for task in tasks:
        shares = [100 * (each.scores["slo_by_task"].get(task) or 0.0) for each in scored]
        attained.plot(names, shares, marker="o", linestyle="none", label=task)
    attained.set_ylabel("SLO attained, % of requests")
    attained.legend(fontsize="small", ncols=3)
    attained.tick_params(axis="x", rotation=20)
    save_figure(figure, path)
