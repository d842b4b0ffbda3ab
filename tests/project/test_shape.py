"""The shape of the code: sizes, the direction of imports, purity, no dead files."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each room may import from itself and from those to its right.
ROOMS = ("shunter", "gateway", "workers", "streams", "policies", "topics")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400

# What would let policies look at the world outside their arguments.
IMPURE = frozenset(
    {
        "aiokafka", "asyncio", "builtins", "concurrent", "datetime", "faust", "http", "importlib",
        "io", "logging", "mode", "multiprocessing", "opentelemetry", "os", "pathlib", "random",
        "secrets", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading",
        "time", "uuid",
    }
)  # fmt: skip
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "id", "hash"})
# What a docstring does not begin with: the subject comes first (CONTRIBUTING.md).
INDIRECT = frozenset({"how", "what", "whatever", "when", "where", "whether", "who", "whose"})
# What makes a process of Shunter; an import of one type loads none of it.
COMPOSITION = ("faust", "mode", "aiohttp", "streams.router", "streams.live", "streams.hosting")
# The readings of a clock; sleeping and formatting are another matter.
CLOCK_READINGS = frozenset({"time", "time_ns", "monotonic", "monotonic_ns"})
# Deadlines inside the embedded broker's own start-up and the thinning of its log lines, where no
# request is concerned and no caller has a clock.
OWN_CLOCK = frozenset(
    {f"topics/embedded_broker/{name}.py" for name in ("broker", "cluster", "jvm")}
    | {"streams/logs.py"}
)


@cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """Every module of the project, as dotted name: (path from the root, tree)."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            relative = path.relative_to(ROOT)
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (str(relative), ast.parse(path.read_text(), str(path)))
    return found


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """All nodes of a module: walked through once, for all tests."""
    return tuple(ast.walk(tree))


@cache
def imported(tree: ast.Module) -> tuple[tuple[str, int], ...]:
    """Dotted names that a module imports anywhere in it, with their lines.

    ``from a import b`` counts as both ``a`` and ``a.b``, since ``b`` may be a module.
    """
    return tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_the_rooms_are_all_there() -> None:
    assert {room_of(name) for name in modules()} == set(ROOMS)
    assert len(modules()) > 50


def test_files_can_be_read_in_one_sitting() -> None:
    long = [
        f"{path}: {count} lines, at most {FILE_LINES_MAX}"
        for path, _ in modules().values()
        if (count := len((ROOT / path).read_text().splitlines())) > FILE_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path}:{node.lineno}: {node.name} has {count} lines, at most {FUNCTION_LINES_MAX}"
        for path, tree in modules().values()
        for node in nodes(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (count := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_imports_point_one_way() -> None:
    wrong = sorted(
        {
            f"{path}:{line}: {room_of(name)} must not import {room_of(target)}"
            for name, (path, tree) in modules().items()
            for target, line in imported(tree)
            if room_of(target) in ROOMS
            if ROOMS.index(room_of(target)) < ROOMS.index(room_of(name))
        }
    )
    assert not wrong, "\n".join(wrong)


def inner_room_of(name: str) -> str:
    """The room within a package: its folder, or a module that stands beside the folders."""
    return ".".join(name.split(".")[:2])


@cache
def origins() -> dict[str, str]:
    """Where the names that a package offers come from, as package.name: module."""
    return {
        f"{package}.{alias.asname or alias.name}": node.module or ""
        for package in ROOMS
        for node in modules()[package][1].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def inner_imports() -> dict[str, set[str]]:
    """By room within a package, the rooms of the same package that it imports."""
    found: dict[str, set[str]] = {}
    for name, (_, tree) in modules().items():
        if name in ROOMS:
            continue
        room = inner_room_of(name)
        for target, _ in imported(tree):
            other = inner_room_of(origins().get(target, target))
            if room_of(other) == room_of(name) and other not in {room, room_of(name)}:
                found.setdefault(room, set()).add(other)
    return found


def test_rooms_import_each_other_in_no_circle() -> None:
    left = {room: set(others) for room, others in inner_imports().items()}
    while left:
        free = {room for room, others in left.items() if not others & left.keys()}
        assert free, "a circle in " + "; ".join(f"{r} imports {left[r]}" for r in sorted(left))
        left = {room: others for room, others in left.items() if room not in free}


def test_modules_import_each_other_in_no_circle() -> None:
    left = {
        name: {
            origins().get(target, target)
            for target, _ in imported(tree)
            if origins().get(target, target) in modules()
            # Its own folder, which `from folder import module` names too.
            if not name.startswith(f"{target}.")
        }
        - {name, *ROOMS}
        for name, (_, tree) in modules().items()
    }
    while left:
        free = {name for name, others in left.items() if not others & left.keys()}
        assert free, "a circle in " + "; ".join(f"{m} imports {left[m]}" for m in sorted(left))
        left = {name: others for name, others in left.items() if name not in free}


def test_no_module_imports_its_own_package() -> None:
    """Within a package nothing imports the package itself, which imports all of it."""
    wrong = [
        f"{path}:{line}: imports {target} by way of its own package"
        for name, (path, tree) in modules().items()
        if name not in ROOMS
        for target, line in imported(tree)
        if target in origins() and room_of(target) == room_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_named_by_nouns() -> None:
    """No adverb and no participle; a gerund is a noun (`sampling`)."""
    names = {path: Path(path).stem.rsplit("_", maxsplit=1)[-1] for path, _ in modules().values()}
    # Two that only look so, and the name of a command.
    nouns = {"assembly", "speed", "apply"}
    wrong = [p for p, word in names.items() if word.endswith(("ly", "ed")) and word not in nouns]
    assert not wrong, "\n".join(wrong)


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path, tree in modules().values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    wrong = [f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("streams.engine.transactor", ("faust", "mode", "aiokafka", "aiohttp", "streams.router")),
        ("streams.engine.log", ("policies", *COMPOSITION, "opentelemetry.sdk", "streams.tracing")),
        ("streams.kafka.log", ("policies", *COMPOSITION)),
        ("topics", ("policies", "streams", "aiokafka", "faust", "mode", "aiohttp")),
        ("workers.backends.base", ("faust", "aiokafka", "workers.stage", "workers.backends.cpu")),
        ("policies", ("aiokafka", "streams", "topics.admin", "topics.embedded_broker")),
    ],
)
def test_one_room_loads_no_others(module: str, strangers: tuple[str, ...]) -> None:
    code = f"import sys; import {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wrong = {
        each for each in loaded for name in strangers if each == name or each.startswith(f"{name}.")
    }
    assert not wrong


def test_one_room_touches_the_private_parts_of_others() -> None:
    """aiokafka's are all in one room; elsewhere policies' own models."""
    touching = {
        path for path, _ in modules().values() if "noqa: SLF001" in (ROOT / path).read_text()
    }
    elsewhere = {path for path in touching if not path.startswith("streams/kafka/")}
    assert elsewhere == {
        "policies/config/policy.py",
        "policies/config/schema.py",
    }
    (held_to,) = [
        each
        for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if each.startswith("aiokafka")
    ]
    assert "<" in held_to, "a next version may have others"


def test_contributors_are_told_of_each_room_and_each_target() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert " > ".join(f"`{room}`" for room in ROOMS) in text, "the order of imports"
    rows = set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE))
    assert rows == {*ROOMS, "tests", "benchmarks", "deploy"}
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [name for name in targets.split() if f"`make {name}`" not in text] == []


def test_continuous_integration_runs_every_tier() -> None:
    recipes = dict(
        re.findall(r"^([\w-]+): setup\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    assert recipes["test"] == '$(VENV)/bin/pytest -m "not slow"'
    assert recipes["test-slow"] == "$(VENV)/bin/pytest -m slow"
    assert recipes["test-all"] == "$(VENV)/bin/pytest"
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "-m" not in " ".join(told["addopts"]).split()
    steps = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps == ["lint", "test-all", "simulate", "guard"]


def test_no_module_imports_the_tests() -> None:
    wrong = [
        f"{path}:{line}: imports {target}"
        for path, tree in modules().values()
        for target, line in imported(tree)
        if room_of(target) in {"tests", "benchmarks", "pytest", "hypothesis"}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_test_modules_have_one_name() -> None:
    """Pytest imports each by its name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []


def test_no_test_module_imports_another() -> None:
    """What two of them share is in a module of its own, beside them."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    tests = {path.stem for path in paths if path.name.startswith("test_")}
    assert len(tests) > 100
    # By the words of each import: to parse all tests takes two seconds.
    statement = re.compile(r"^\s*(?:import|from)\s[^\n(]*(?:\([^)]*\))?", re.MULTILINE)
    wrong = sorted(
        {
            f"{path.relative_to(ROOT)}: imports {word}"
            for path in paths
            for words in statement.findall(path.read_text())
            for word in re.findall(r"\w+", words)
            if word in tests
        }
    )
    assert not wrong, "\n".join(wrong)


def test_policies_import_nothing_that_sees_the_world() -> None:
    wrong = sorted(
        {
            f"{path}:{line}: policies are pure and must not import {room_of(target)}"
            for name, (path, tree) in modules().items()
            if room_of(name) == "policies"
            for target, line in imported(tree)
            if room_of(target) in IMPURE
        }
    )
    assert not wrong, "\n".join(wrong)


def test_policies_call_nothing_that_sees_the_world() -> None:
    wrong = [
        f"{path}:{node.lineno}: policies are pure and must not call {node.func.id}()"
        for name, (path, tree) in modules().items()
        if room_of(name) == "policies"
        for node in nodes(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in IMPURE_CALLS
    ]
    assert not wrong, "\n".join(wrong)


def test_policies_use_only_the_record_models_of_topics() -> None:
    administration = ("admin", "embedded_broker", "registry", "settings", "records.headers")
    wrong = sorted(
        {
            f"{path}:{line}: policies must not import {target}"
            for name, (path, tree) in modules().items()
            if room_of(name) == "policies"
            for target, line in imported(tree)
            if any(target.startswith(f"topics.{each}") for each in administration)
        }
    )
    assert not wrong, "\n".join(wrong)


def clock_readings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    aliases = {
        alias.asname or alias.name
        for node in nodes(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "time"
    }
    for node in nodes(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in aliases and node.attr in CLOCK_READINGS:
                yield f"time.{node.attr}", node.lineno
            if node.attr in {"now", "utcnow", "today"} and node.value.id in {"datetime", "date"}:
                yield f"{node.value.id}.{node.attr}", node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            for alias in node.names:
                if alias.name in CLOCK_READINGS:
                    yield f"time.{alias.name}", node.lineno


def test_time_is_passed_in_and_read_in_one_module() -> None:
    wrong = [
        f"{path}:{line}: reads {reading}; take a streams.engine.clock.Clock"
        for name, (path, tree) in modules().items()
        if room_of(name) != "shunter"
        and path != "streams/engine/clock.py"
        and path not in OWN_CLOCK
        for reading, line in clock_readings(tree)
    ]
    assert not wrong, "\n".join(wrong)
    assert list(clock_readings(modules()["streams.engine.clock"][1]))


def test_no_file_is_dead() -> None:
    """A module is used by another one, or is where a program starts."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    used = {entry.partition(":")[0] for entry in scripts.values()}
    for name, (_, tree) in modules().items():
        used |= {target for target, _ in imported(tree) if target != name}
        # `python -m NAME`, as a process starts another one.
        used |= {node.value for node in nodes(tree) if isinstance(node, ast.Constant)}
    dead = [
        path
        for name, (path, _) in modules().items()
        if name not in used and not path.endswith(("__init__.py", "__main__.py"))
    ]
    assert not dead, "nothing imports " + ", ".join(dead)


@pytest.mark.parametrize("package", ["topics", "policies", "shunter"])
def test_each_package_that_offers_names_lists_them(package: str) -> None:
    path, tree = modules()[package]
    listed = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    assert len(listed) == 1, f"{path} has no __all__"
    public = ast.literal_eval(listed[0])
    bound = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    } | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert set(public) <= bound, f"{path}: {sorted(set(public) - bound)} are not there"
    assert len(set(public)) == len(public), f"{path} lists a name twice"


def test_each_module_says_what_it_is() -> None:
    silent = [
        path for path, tree in modules().values() if tree.body and ast.get_docstring(tree) is None
    ]
    assert not silent, f"no docstring in {', '.join(silent)}"


def test_docstrings_begin_with_what_a_thing_is_or_does() -> None:
    wrong = [
        f"{path}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for path, tree in modules().values()
        for node in nodes(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if (text := ast.get_docstring(node)) and text.split()[0].casefold() in INDIRECT
    ]
    assert not wrong, "\n".join(wrong)


def test_each_folder_says_what_belongs_in_it() -> None:
    folders = {path.parent for path, _ in ((ROOT / p, t) for p, t in modules().values())}
    silent = [
        str(folder.relative_to(ROOT))
        for folder in sorted(folders)
        if not (init := folder / "__init__.py").exists()
        or (ast.get_docstring(ast.parse(init.read_text())) is None and init.read_text().strip())
    ]
    assert not silent, f"no docstring in {', '.join(silent)}"


@pytest.mark.parametrize("command", ["router", "worker"])
def test_what_is_started_again_imports_no_other_command(command: str) -> None:
    code = (
        f"import sys; from shunter.cli import load; load({command!r});"
        " print(*(name for name in sys.modules if name.startswith('shunter.commands.')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [f"shunter.commands.{command}"]
