"""The files that users declare fleet and policy in, read once at start."""

from importlib import resources
from pathlib import Path

from policies import Fleet, Options, Policy, compile_options, parse_fleet, parse_policy
from policies.declaration import DeclarationError, Problem
from topics import Settings

_PACKAGED = resources.files("policies.defaults")


def packaged(name: str) -> str:
    """Return the text of a packaged declaration, such as ``fleet.yaml``."""
    return (_PACKAGED / name).read_text(encoding="utf-8")


def load_fleet(path: Path | None) -> Fleet:
    """Return the fleet in a file, or the packaged one.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    text, name = _read(path, "fleet.yaml")
    return parse_fleet(
        text,
        name,
        packaged_devices_text=packaged("devices.yaml"),
        packaged_models_text=packaged("models.yaml"),
    )


def load_policy(path: Path | None) -> Policy:
    """Return the policy in a file, or the packaged one.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    text, name = _read(path, "policy.yaml")
    return parse_policy(text, name)


def load_declarations(settings: Settings) -> tuple[Options, Policy]:
    """Return what a process decides by: the fleet's options and the policy.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    return compile_options(load_fleet(settings.fleet)), load_policy(settings.policy)


def _read(path: Path | None, default: str) -> tuple[str, str]:
    if path is None:
        return packaged(default), f"packaged {default}"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError([Problem(str(path), "", "", f"can't be read: {error}")]) from error
