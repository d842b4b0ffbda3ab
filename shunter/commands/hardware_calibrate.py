"""`shunter hardware calibrate`: measure a real model server and declare its device by that."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import urlsplit

import typer
import yaml
from pydantic import ValidationError
from rich.table import Table

from policies import DeclarationError
from policies.config.fleet import OpenAIBackendConfig
from policies.config.hardware import Device, HardwareCatalogue, Model, Precision
from policies.config.schema import did_you_mean
from shunter.client.kafka import run
from shunter.console import UserError, check_writable, err, wide_out, write_output
from shunter.hardware.calibration import Calibration, Case, at_bound, calibrate
from shunter.hardware.devices import load_catalogue
from shunter.hardware.sweep import Point, SweepPoint, sweep

CatalogueFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--catalogue",
        help="YAML with further devices and models; of several the last that has a name counts.",
        metavar="FILE",
    ),
]
Numbers = Annotated[str, typer.Option(help="Whole numbers, comma-separated.")]


def calibrate_command(
    url: Annotated[str, typer.Argument(help="The server's URL, up to and with /v1.")],
    device: Annotated[str, typer.Option(help="The device, as the catalogue declares it.")],
    model: Annotated[str, typer.Option(help="The model that the server has, of the catalogue.")],
    precision: Annotated[str, typer.Option(help="Of its weights.")],
    output: Annotated[Path, typer.Option("--output", help="YAML to write.", metavar="FILE")],
    served_name: Annotated[str | None, typer.Option(help="What the server calls it.")] = None,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, max=1024, help="Devices that one replica runs on together.")
    ] = 1,
    catalogue: CatalogueFiles = None,
    input_tokens: Numbers = "32,128,512",
    output_tokens: Annotated[int, typer.Option(min=2, max=4096, help="Tokens of each reply.")] = 32,
    concurrency: Numbers = "1,2,4",
    minutes: Annotated[float, typer.Option(min=0.1, max=120, help="At most, about.")] = 5.0,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds the key.")] = None,
) -> None:
    """Measure a model server and write its device's constants.

    Closed loops of each length with each number of clients, streamed. A third of the points is
    held out of the fit and tells its error. A model that isn't packaged is written, too.

    Example: shunter hardware calibrate http://127.0.0.1:8000/v1 --device h100 --model llama-3.1-8b
    --precision fp8 --output device.yaml
    """
    try:
        known = load_catalogue(*(catalogue or ()))
        settings = {"type": "openai", "base_url": url, "api_key_env": api_key_env}
        declared = OpenAIBackendConfig.model_validate(settings)
    except DeclarationError as error:
        raise UserError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    case = _case(known, device, model, precision, tensor_parallel)
    asked = _grid(_numbers("--input-tokens", input_tokens), output_tokens,
                  _numbers("--concurrency", concurrency))  # fmt: skip
    check_writable(output)
    points = run(sweep(declared, served_name or model, asked, 60 * minutes, _tell))
    host = urlsplit(url).hostname
    today = datetime.now(UTC).date().isoformat()
    measured = f"{len(points)} points of {model} {precision} at {host}, {today}"
    try:
        found = calibrate(case, points, measured)
    except ValueError as error:
        raise UserError(str(error)) from error
    given = () if known.models[model] == load_catalogue().models.get(model) else (model,)
    _write(output, device, found, {name: known.models[name] for name in given})
    _show(found)
    for advice in at_bound(case.device, found.device):
        err.print(f"note: {advice}", highlight=False)
    err.print(f"wrote {output}", highlight=False)


def _case(
    known: HardwareCatalogue, device: str, model: str, precision: str, tensor_parallel: int
) -> Case:
    precisions: tuple[Precision, ...] = get_args(Precision)
    found = next((each for each in precisions if each == precision), None)
    if found is None:
        raise UserError(f"--precision: {precision!r}: {did_you_mean(precision, precisions)}")
    if device not in known.devices:
        raise UserError(f"--device: {device!r}: {did_you_mean(device, known.devices)}")
    if model not in known.models:
        raise UserError(f"--model: {model!r}: {did_you_mean(model, known.models)}")
    declared = known.devices[device]
    if declared.computes_in(found) is None:
        raise UserError(f"--precision: {device} declares no rate that computes {precision}")
    return Case(declared, known.models[model], found, tensor_parallel)


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = sorted({int(each) for each in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > 1_000_000:
        raise UserError(f"{option}: {text[:60]!r}: give whole numbers from 1 on, as 32,128,512")
    return found


def _grid(inputs: list[int], output_tokens: int, clients: list[int]) -> list[SweepPoint]:
    """Return all pairs, a third of them, spread over both, where points are held out."""
    grid = [SweepPoint(tokens, output_tokens, count) for count in clients for tokens in inputs]
    # Along diagonals, so that no length and no concurrency is held out alone.
    width = len(inputs)
    return sorted(grid, key=lambda each: (
        (inputs.index(each.input_tokens) + clients.index(each.concurrency)) // width,
        each.concurrency * each.input_tokens,
    ))  # fmt: skip


def _tell(point: Point) -> None:
    asked = point.asked
    err.print(
        f"{asked.input_tokens} + {asked.output_tokens} tokens, {asked.concurrency} clients: "
        f"TTFT {1000 * point.ttft_s:.1f} ms, TPOT {1000 * point.tpot_s:.2f} ms",
        highlight=False,
    )


def _write(path: Path, name: str, found: Calibration, models: Mapping[str, Model]) -> None:
    """Write device and models as a catalogue has them, and read them again as one."""
    entries: dict[str, Mapping[str, Device | Model]] = {"devices": {name: found.device}}
    if models:
        entries["models"] = models
    dumped = {
        part: {
            key: each.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for key, each in declared.items()
        }
        for part, declared in entries.items()
    }
    text = yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True)
    write_output(path, text.encode())
    try:
        load_catalogue(path)
    except DeclarationError as error:
        raise UserError(f"what was found is no device: {error}") from error


def _show(found: Calibration) -> None:
    table = Table("tokens", "clients", "TTFT ms", "predicted", "TPOT ms", "predicted", "held out")
    for each in found.points:
        asked, told = each.point.asked, each.predicted
        table.add_row(
            f"{asked.input_tokens} + {asked.output_tokens}",
            str(asked.concurrency),
            f"{1000 * each.point.ttft_s:.1f}",
            f"{1000 * told.ttft_s:.1f}",
            f"{1000 * each.point.tpot_s:.2f}",
            f"{1000 * told.tpot_s:.2f}",
            "yes" if each.is_held_out else "",
        )
    console = wide_out()
    console.print(table)
    ttft, tpot = found.errors()
    serving = found.device.serving
    spread = f"; actual = predicted x or / {math.exp(serving.error):.2f}" if serving else ""
    console.print(f"median error on points held out: TTFT {ttft:.1%}, TPOT {tpot:.1%}{spread}")
