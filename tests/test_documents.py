"""The documents say what is true: fields, settings, commands, examples and paths."""

import dataclasses
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from rights_table import rows

from policies import parse_policy
from policies.fleet import OpenAIBackend
from streams.declarations import load_fleet
from streams.live import Snapshot
from streams.live import snapshot as live
from topics import InferenceRequest, Result, Settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README, OPERATIONS, WORKERS = (
    (ROOT / name).read_text() for name in ("README.md", "docs/operations.md", "docs/workers.md")
)
TOP_LEVEL = "docs|tests|topics|policies|streams|workers|shunter|deploy"


def first_column(document: str, heading: str) -> str:
    """The first column of the table under a heading."""
    section = document.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows, heading
    return "\n".join(row.split("|")[1] for row in rows)


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_table_of_request_fields_is_the_model() -> None:
    told = re.findall(r"`(\w+)`", first_column(README, "The request"))
    assert told == list(InferenceRequest.model_fields)


def test_table_of_result_fields_is_the_record() -> None:
    told = re.findall(r"`(\w+)`", first_column(README, "The result"))
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(Result))


def test_table_of_settings_is_complete() -> None:
    told = set(re.findall(r"`SHUNTER_(\w+)`", first_column(OPERATIONS, "Settings")))
    # The cache is the embedded broker's own.
    assert told - {"CACHE_DIR"} == {name.upper() for name in Settings.model_fields}


def test_tables_of_buffers_have_the_limits_of_the_code() -> None:
    section = OPERATIONS.split("### Buffers\n")[1].split("\n## ", maxsplit=1)[0]
    checked = 0
    for row in section.splitlines():
        path = re.search(r"`((?:streams|workers|policies)/[\w/]+\.py)`", row)
        for name, number, unit in re.findall(r"`([A-Z_]+_MAX)`, ([\d,]+)( MiB)?", row):
            assert path, row
            code = re.search(rf"^{name} = ([\d_* ]+)$", (ROOT / path[1]).read_text(), re.MULTILINE)
            assert code, row
            value = math.prod(int(part) for part in code[1].split("*"))
            assert value == int(number.replace(",", "")) * (1024**2 if unit else 1), row
            checked += 1
    assert checked > 10


def test_table_of_a_model_server_is_what_can_be_declared() -> None:
    told = re.findall(r"`(\w+)`", first_column(WORKERS, "Model servers"))
    assert told == list(OpenAIBackend.model_fields)


def test_table_of_the_live_view_has_each_field_of_it() -> None:
    section = (ROOT / "docs/live.md").read_text().split("## Fields\n")[1]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    told = [re.findall(r"`(\w+)`", row) for row in rows]
    parts: tuple[type[Any], ...] = (
        Snapshot,
        live.Window,
        live.Ended,
        live.Money,
        live.Pool,
        live.Holds,
        live.Hold,
    )
    parts += (live.Workload, live.Fallback)
    assert [row for row in told if row] == [[f.name for f in dataclasses.fields(p)] for p in parts]


def test_table_of_rights_is_what_the_roles_have() -> None:
    section = OPERATIONS.split("## Rights\n")[1].split("\n## ", maxsplit=1)[0]
    told = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert told == list(rows())


def test_table_of_commands_is_complete() -> None:
    told = re.findall(r"`shunter ([a-z -]+?)(?: [A-Z]+)?`", first_column(README, "Commands"))
    assert sorted(told) == sorted(commands())


def commands() -> dict[str, typer.core.TyperCommand]:
    from shunter.cli import app

    found = {}
    for name, command in typer.main.get_group(app).commands.items():
        inner = getattr(command, "commands", None)
        found.update({f"{name} {n}": c for n, c in inner.items()} if inner else {name: command})
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_examples_can_be_typed(document: Path) -> None:
    for line in "\n".join(blocks(document.read_text(), "sh")).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] != ["shunter"]:
                continue
            length = 2 if " ".join(words[1:3]) in commands() else 1
            name = " ".join(words[1 : 1 + length])
            assert name in commands(), line
            # Raises UsageError where an option or argument isn't one.
            commands()[name].make_context(name, words[1 + length :])


def test_example_declarations_are_valid(tmp_path: Path) -> None:
    examples = {next(iter(yaml.safe_load(text))): text for text in blocks(README, "yaml")}
    (tmp_path / "fleet.yaml").write_text(examples["devices"])
    assert list(load_fleet(tmp_path / "fleet.yaml").pools) == ["boards-eu"]
    assert "nightly" in parse_policy(examples["classes"], "README.md").classes


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_paths_and_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
    for path in re.findall(rf"`((?:{TOP_LEVEL})/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
