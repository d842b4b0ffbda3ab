"""The names that spans carry are those that the document of traces lists."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]


def written() -> Iterator[str]:
    """Yield each ``shunter.*`` in the modules that say what is in a span."""
    for room in ("shunter", "streams", "workers"):
        for path in (ROOT / room).rglob("*.py"):
            tree = ast.parse(path.read_text())
            if any(name.endswith("attributes") for name in {path.stem, *imported(tree)}):
                for node in ast.walk(tree):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield from re.findall(r"^shunter\.([a-z_.]+)$", node.value)


def imported(tree: ast.Module) -> set[str]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {
        name.name
        for node in found
        if (node.module or "").startswith("streams")
        for name in node.names
    }


def listed() -> set[str]:
    document = (ROOT / "docs" / "tracing.md").read_text()
    (names,) = re.findall(r"is `shunter\.\*`: (.+?)\.\s", document, re.DOTALL)
    return set(re.findall(r"`(.+?)`", names))


def test_the_document_lists_each_name_and_no_other() -> None:
    names, patterns = set(written()), listed()
    assert len(names) > 20
    unlisted = {n for n in names if not any(fnmatchcase(n, pattern) for pattern in patterns)}
    unwritten = {p for p in patterns if not any(fnmatchcase(name, p) for name in names)}
    assert (unlisted, unwritten) == (set(), set())
