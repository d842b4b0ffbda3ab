"""Pictures of matplotlib, which is an extra."""

from pathlib import Path
from typing import Any

from shunter.console import UserError

DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> Any:
    """Return a figure of so many inches that needs no screen.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'shunter[backtest]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure.

    Raises:
        UserError: the file can't be written.
    """
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be written: {error}") from error
