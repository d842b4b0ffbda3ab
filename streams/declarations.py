"""The files that users declare fleet and policy in, read once at start."""

from importlib import resources
from pathlib import Path

from policies import Fleet, Policy, parse_fleet, parse_policy
from policies.declaration import DeclarationError, Problem

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


def _read(path: Path | None, default: str) -> tuple[str, str]:
    if path is None:
        return packaged(default), f"packaged {default}"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError([Problem(str(path), "", "", f"can't be read: {error}")]) from error
