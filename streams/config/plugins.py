"""Policy plugins, found among the installed distributions by their entry points."""

import logging
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from policies import DeclarationError, Extension, Policy, Problem

GROUP = "shunter.policies"
JUDGES = "shunter.judges"

logger = logging.getLogger(__name__)


def load_extensions(policy: Policy, file: str) -> Policy:
    """Return the policy with the extensions that it names loaded.

    Args:
        policy: as it was declared.
        file: its name, for errors.

    Raises:
        DeclarationError: one is not installed, can't be loaded, or is of another version than the
            policy wants.
    """
    if not policy.extensions:
        return policy
    found, problems = [], []
    for index, name in enumerate(policy.extensions):
        try:
            extension = _load(name)
        except _UnusableError as error:
            problems.append(Problem(file, f"extensions[{index}]", repr(name), str(error)))
            continue
        wanted = policy.extension_versions.get(name)
        if wanted not in {None, extension.version}:
            told = f"{wanted} is wanted, and {extension.version} is installed in this process"
            problems.append(Problem(file, f"extension_versions.{name}", "", told))
        found.append(extension)
    if problems:
        raise DeclarationError(problems)
    return policy.bind(found)


class _UnusableError(Exception):
    pass


def _load(name: str) -> Extension:
    points = list(entry_points(group=GROUP, name=name))
    if not points:
        known = ", ".join(sorted({p.name for p in entry_points(group=GROUP)})) or "none"
        raise _UnusableError(
            f"no installed distribution has an entry point of this name in the group {GROUP}"
            f" (there are: {known}); install it where this process runs"
        )
    if len(points) > 1:
        origins = ", ".join(sorted(_version_of(point) for point in points))
        raise _UnusableError(f"several distributions offer it: {origins}; remove all but one")
    (point,) = points
    try:
        loaded = point.load()
    except Exception as error:  # whatever its module raises
        raise _UnusableError(f"can't be loaded: {type(error).__name__}: {error}") from error
    refuse, price = getattr(loaded, "refuse", None), getattr(loaded, "price", None)
    if not callable(refuse) and not callable(price):
        raise _UnusableError(
            "has neither refuse(profile, option) nor price(profile, option, price_usd)"
        )
    return Extension(name, _version_of(point), refuse, price)


def load_judges() -> dict[str, Callable[..., float]]:
    """Return the judges of the quality watch that are installed here, by name.

    One that can't be loaded is reported and left out: what it would compare counts as uncompared.
    """
    found: dict[str, Callable[..., float]] = {}
    for point in entry_points(group=JUDGES):
        try:
            loaded = point.load()
        except Exception as error:  # noqa: BLE001 - whatever its module raises
            logger.warning("the judge %s can't be loaded: %s", point.name, error)
            continue
        found[point.name] = loaded
    return found


def _version_of(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"
