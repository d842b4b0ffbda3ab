"""`shunter hardware`: latencies that the hardware model predicts, and what they rest on."""

import math
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Table

from policies import DeclarationError
from policies.config.hardware import HardwareCatalogue
from shunter.command_tree import CommandTree
from shunter.commands.hardware_calibrate import CatalogueFiles, calibrate_command
from shunter.console import AsJson, complain, wide_out
from shunter.hardware.devices import load_catalogue
from shunter.hardware.predictions import REQUIRED, UnreadableError, predictions, read_rows

UNREADABLE = 2

hardware = CommandTree(
    add_completion=False, name="hardware", help="Predict latencies; list devices and models."
)
hardware.command(name="calibrate")(calibrate_command)


@hardware.command()
def predict(
    file: Annotated[
        Path, typer.Argument(help="A CSV file, one configuration a row; - is standard input.")
    ],
    catalogue: CatalogueFiles = None,
    as_json: AsJson = False,
) -> None:
    """Predict mean TTFT and TPOT of configurations in a closed loop.

    A row is one replica that serves one variant alone, and clients that each send their next
    request when the last one is answered. docs/hardware.md has the columns.

    Example: shunter hardware predict configurations.csv --json
    """
    try:
        rows, known = read_rows(file), load_catalogue(*(catalogue or ()))
    except (UnreadableError, DeclarationError) as error:
        complain(str(error))
        raise typer.Exit(UNREADABLE) from error
    found = list(predictions(rows, known))
    if as_json:
        typer.echo(orjson.dumps({"rows": found}).decode())
        return
    table = Table("TTFT ms", "TPOT ms", *REQUIRED, "")
    for row, each in zip(rows, found, strict=True):
        told = [f"{float(each[key]):.4g}" if key in each else "" for key in ("ttft_ms", "tpot_ms")]
        table.add_row(*told, *(row[name] for name in REQUIRED), _note(row, each, known))
    wide_out().print(table)


@hardware.command(name="list")
def list_(catalogue: CatalogueFiles = None, as_json: AsJson = False) -> None:
    """List devices and models, and whether their figures are measured, published or assumed.

    The error is the factor by which a latency may be off, the power that of a busy device; it is
    unknown where nobody published it.

    Example: shunter hardware list
    """
    try:
        known = load_catalogue(*(catalogue or ()))
    except DeclarationError as error:
        complain(str(error))
        raise typer.Exit(UNREADABLE) from error
    told = _devices(known), _models(known)
    if as_json:
        typer.echo(orjson.dumps(dict(zip(("devices", "models"), told, strict=True))).decode())
        return
    devices, models = told
    table = Table("device", "status", "error", "power", "source")
    for each in devices:
        deviation, power_w = each["error"], each["power_w"]
        factor = f"x {math.exp(deviation):.2f}" if isinstance(deviation, float) else "unknown"
        power = "unknown" if power_w is None else f"{power_w:,g} W"
        table.add_row(str(each["name"]), str(each["status"]), factor, power, str(each["source"]))
    wide_out().print(table)
    table = Table("model", "status", "source")
    for each in models:
        table.add_row(*(str(each[column]) for column in ("name", "status", "source")))
    wide_out().print(table)


def _devices(known: HardwareCatalogue) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "status": device.status,
            "error": device.error or None,
            "power_w": device.power_w,
            "source": device.measured or device.source,
            "assumptions": device.assumptions,
        }
        for name, device in sorted(known.devices.items())
    ]


def _models(known: HardwareCatalogue) -> list[dict[str, object]]:
    return [
        {"name": name, "status": model.status, "source": model.source}
        for name, model in sorted(known.models.items())
    ]


def _note(row: dict[str, str], found: dict[str, float | str], known: HardwareCatalogue) -> str:
    """Return why a row has no figures, or that they are assumed."""
    if "error" in found:
        return str(found["error"])
    return "assumed" if known.devices[row["device"]].is_assumed else ""
