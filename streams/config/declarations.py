"""Declarations of fleet and policy: files read at start, and texts on the policies topic."""

import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from policies import Fleet, Policy, parse_fleet, parse_policy
from policies.config.schema import DeclarationError, Problem, digest_of_text
from streams.config.plugins import load_extensions
from streams.config.series_files import completing
from topics import PolicyChange, PolicyLog
from topics.records.policy_change import DeclaredKind

FULL = Path("full")
"""Names the packaged fleet in which every kind of device stands."""

_PACKAGED = resources.files("policies.defaults")


@dataclass(frozen=True, slots=True)
class Declarations:
    """A fleet and a policy in force together, and a shadow policy that decides beside it."""

    fleet: Fleet
    policy: Policy
    shadow: Policy | None = None


def packaged(name: str) -> str:
    """Return the text of a packaged declaration, such as ``fleet.yaml``."""
    return (_PACKAGED / name).read_text(encoding="utf-8")


def load_fleet(path: Path | None) -> Fleet:
    """Return the fleet in a file, or a packaged one: `FULL` by its name, the usual one by none.

    A file of that name comes first.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    if path == FULL and not path.exists():
        text, name = _read(None, "fleet-full.yaml")
    else:
        text, name = _read(path, "fleet.yaml")
    return parse_fleet(
        text,
        name,
        packaged_devices_text=packaged("devices.yaml"),
        packaged_models_text=packaged("models.yaml"),
        complete=completing(name, None if path is None or str(path) == "-" else path.parent),
    )


def load_policy(path: Path | None) -> Policy:
    """Return the policy in a file, or the packaged one.

    Raises:
        DeclarationError: naming file, field and value of each problem.
    """
    text, name = _read(path, "policy.yaml")
    return load_extensions(parse_policy(text, name), name)


def text_of(declaration: Fleet | Policy) -> str:
    """Return a declaration as complete JSON: packaged parts are written out."""
    return declaration.model_dump_json(by_alias=True)


def declared_by(said: PolicyLog, change: PolicyChange, own: Declarations) -> Declarations:
    """Return what a change puts in force; ``own`` fills what it leaves open.

    Raises:
        DeclarationError: a text is missing, can't be read here, or is not that of its version.
    """
    fleet, policy = own.fleet, own.policy
    if change.fleet is not None:
        fleet = published_fleet(said, change.fleet)
    if change.policy is not None:
        policy = published_policy(said, change.policy)
    shadow = None if change.shadow is None else published_policy(said, change.shadow)
    return Declarations(fleet, policy, shadow)


def published_policy(said: PolicyLog, version: str) -> Policy:
    """Return a policy by its version. Raises DeclarationError."""
    text, name = _published(said, "policy", version)
    return load_extensions(parse_policy(text, name), name).published_as(version)


def published_fleet(said: PolicyLog, version: str) -> Fleet:
    """Return a fleet by its version. Raises DeclarationError."""
    return parse_fleet(*_published(said, "fleet", version)).published_as(version)


def _published(said: PolicyLog, kind: DeclaredKind, version: str) -> tuple[str, str]:
    name, found = f"{kind} {version}", said.find(kind, version)
    if found is None:
        raise DeclarationError([Problem(name, "", "", "is not on the topic")])
    try:
        is_whole = digest_of_text(found.text) == version
    except ValueError:
        is_whole = False
    if not is_whole:
        message = "its text has another digest: it is not what was applied"
        raise DeclarationError([Problem(name, "", "", message)])
    return found.text, name


def _read(path: Path | None, default: str) -> tuple[str, str]:
    if path is None:
        return packaged(default), f"packaged {default}"
    try:
        if str(path) == "-":
            return sys.stdin.read(), "standard input"
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError([Problem(str(path), "", "", f"can't be read: {error}")]) from error
