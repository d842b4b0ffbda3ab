"""The catalogue that predictions rest on: the packaged one, and files that add to it."""

from pathlib import Path
from typing import Any

from policies.config.hardware import Device, HardwareCatalogue
from policies.config.schema import DeclarationError, Problem, load_mapping, validate_mapping
from shunter.console import named, read_input
from streams.config.declarations import packaged

# What a device takes that declares no constants of its own; no server on a CPU is like those.
INHERITED = "servers-2026"


def load_catalogue(*paths: Path) -> HardwareCatalogue:
    """Return the packaged devices and models, with those of files added or put in their place.

    Files are taken in order: of one name the last file's entry counts, and none needs a later one.
    A device that declares no `serving` inherits the packaged constants, unless it is a CPU.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    devices = load_mapping(packaged("devices.yaml"), "packaged devices.yaml")
    merged: dict[str, Any] = {
        **devices,
        **load_mapping(packaged("models.yaml"), "packaged models.yaml"),
    }
    catalogue = validate_mapping(merged, "packaged catalogue", HardwareCatalogue)
    for path in paths:
        for part, declared in _read(path).items():
            is_known = isinstance(declared, dict) and isinstance(merged.get(part), dict)
            merged[part] = {**merged[part], **declared} if is_known else declared
        catalogue = validate_mapping(merged, named(path), HardwareCatalogue)
    return catalogue.model_copy(
        update={
            "devices": {
                each: _with_constants(device, catalogue)
                for each, device in catalogue.devices.items()
            }
        }
    )


def _with_constants(device: Device, catalogue: HardwareCatalogue) -> Device:
    if device.serving is not None or device.kind == "cpu":
        return device
    return device.model_copy(update={"serving": catalogue.serving[INHERITED]})


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_input(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError([Problem(named(path), "", "", f"can't be read: {error}")]) from error
    return load_mapping(text, named(path))
