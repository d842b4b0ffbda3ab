"""Pictures of matplotlib, which is an extra."""

from pathlib import Path
from typing import Any

from shunter.console import UserError, check_writable

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


def check_figure(path: Path | None) -> None:
    """Check before the work that a picture can be written.

    Raises:
        UserError: matplotlib is missing, it knows no such format, or the file can't be written.
    """
    if path is None:
        return
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise UserError(f"{path}: can't be written: {path.suffix} is no picture; try .png")
    check_writable(path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure.

    Raises:
        UserError: the file can't be written.
    """
    try:
        # Without a format a name that has no ending gets one.
        figure.savefig(path, dpi=DOTS_PER_INCH, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be written: {error}") from error
