"""The documents say what is true: fields, settings, commands, examples and paths."""

import dataclasses
import math
import re
import shlex
from functools import cache
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from rights_table import rows

from policies import Option, Policy, Pool, parse_policy
from policies.config.classes import ClassWatch, Tier, WorkloadClass
from policies.config.fleet import (
    CPUBackendConfig,
    Device,
    Model,
    OpenAIBackendConfig,
    Serve,
    SimulatedBackendConfig,
)
from policies.config.places import Site
from policies.config.policy import DataClass, Estimates, Scarcity, TenantLimits, WindowLimits
from policies.config.quotes import Quotes
from policies.config.series import Series
from streams.config.declarations import load_fleet
from streams.live import Snapshot
from streams.live import snapshot as live
from topics import Catalogue, InferenceRequest, Profile, Result, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
README, OPERATIONS, WORKERS, DECLARATIONS = (
    (ROOT / name).read_text()
    for name in (
        "README.md",
        "docs/operations.md",
        "docs/workers.md",
        "docs/reference/declarations.md",
    )
)
TOP_LEVEL = "docs|tests|topics|policies|streams|workers|gateway|shunter|deploy|benchmarks"


def section_of(document: str, heading: str) -> str:
    """What stands under a heading of any level, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", document, re.MULTILINE)
    assert found, heading
    rest = document[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_table(document: str, heading: str) -> list[str]:
    """The rows of the first table under a heading."""
    lines = iter(section_of(document, heading).splitlines())
    body = dropwhile(lambda line: not line.startswith("| `"), lines)
    rows = list(takewhile(lambda line: line.startswith("| `"), body))
    assert rows, heading
    return rows


def first_column(document: str, heading: str) -> str:
    return "\n".join(row.split("|")[1] for row in first_table(document, heading))


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_table_of_request_fields_is_the_model() -> None:
    told = re.findall(
        r"`(\w+)`", first_column((REFERENCE / "requests.md").read_text(), "The request")
    )
    assert told == list(InferenceRequest.model_fields)


def test_table_of_result_fields_is_the_record() -> None:
    told = re.findall(
        r"`(\w+)`", first_column((REFERENCE / "results.md").read_text(), "The result")
    )
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(Result))


def test_table_of_settings_is_complete() -> None:
    settings = (REFERENCE / "settings.md").read_text()
    told = set(re.findall(r"`SHUNTER_(\w+)`", first_column(settings, "Settings")))
    # Cache and version are the embedded broker's own.
    assert told - {"CACHE_DIR", "KAFKA_VERSION"} == {name.upper() for name in Settings.model_fields}


def test_tables_of_buffers_have_the_limits_of_the_code() -> None:
    checked = 0
    for row in (REFERENCE / "buffers.md").read_text().splitlines():
        path = re.search(r"`((?:streams|workers|policies|gateway)/[\w/]+\.py)`", row)
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
    assert told == list(OpenAIBackendConfig.model_fields)


DECLARED: dict[str, type[BaseModel]] = {
    "A pool": Pool,
    "A series": Series,
    "Sites and regions": Site,
    "A variant": Serve,
    "A simulated backend": SimulatedBackendConfig,
    "A CPU backend": CPUBackendConfig,
    "A device": Device,
    "A model": Model,
    "The policy": Policy,
    "A class": WorkloadClass,
    "A watch": ClassWatch,
    "A tier": Tier,
    "A data class": DataClass,
    "A tenant": TenantLimits,
    "Windows": WindowLimits,
    "Scarcity": Scarcity,
    "Quotes": Quotes,
    "Estimates": Estimates,
}


@pytest.mark.parametrize("heading", DECLARED)
def test_tables_of_declarations_are_what_can_be_declared(heading: str) -> None:
    model = DECLARED[heading]
    top = section_of(DECLARATIONS, heading).split("\n#", maxsplit=1)[0]
    rows = [row.split("|")[1:4] for row in top.splitlines() if row.startswith("| `")]
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    assert sorted(told) == sorted(fields)
    for names, default, _ in rows:
        for name in re.findall(r"`(\w+)`", names):
            # The kind of a backend is what chooses it.
            is_required = fields[name].is_required() and name != "type"
            assert is_required == (default.strip() == "required"), name
            if re.fullmatch(r"[\d.,]+", default.strip()):
                assert float(default.replace(",", "")) == fields[name].default, name


def test_table_of_topics_has_all_of_them_and_how_long_they_keep() -> None:
    text = (REFERENCE / "topics.md").read_text()
    told = {}
    for row in first_table(text, "Topics"):
        names, _, cleanup, _ = row.strip("|").split("|")
        told.update(dict.fromkeys(re.findall(r"`([\w.<>-]+)`", names), cleanup.strip()))
    topics = {topic.name: topic for topic in Catalogue(Settings()).topics(["<pool>"])}
    assert sorted(told) == sorted(topics)
    for name, cleanup in told.items():
        days = topics[name].retention_ms // 86_400_000
        kept = "compacted" if topics[name].cleanup == "compact" else f"{days} day"
        assert cleanup.startswith(kept), name
    single = {name for name, topic in topics.items() if topic.partitions == 1}
    assert single == set(
        re.findall(
            r"`(inference[\w.-]+)`", text.split(" have one partition")[0].rpartition("\n")[2]
        )
    )


def test_the_glossary_is_in_order_and_names_each_term_once() -> None:
    text = (REFERENCE / "glossary.md").read_text()
    terms = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.lower)
    assert len(set(terms)) == len(terms)


def test_the_readme_can_be_read_in_two_minutes() -> None:
    assert len(README.encode()) < 7_000
    assert len(README.splitlines()) < 100
    first = blocks(README, "sh")[0]
    assert [line.partition("#")[0].strip() for line in first.splitlines()] == [
        "make demo",
        "make test",
    ]


def test_each_document_is_reached_from_the_readme() -> None:
    reached, open_ = set[Path](), [ROOT / "README.md"]
    while open_:
        document = open_.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        links = re.findall(r"\]\(([^)#]+)", document.read_text())
        open_ += [(document.parent / link).resolve() for link in links if "://" not in link]
    assert not set(DOCUMENTS) - reached


def test_each_guarantee_names_where_it_is_enforced_and_tested() -> None:
    section = section_of((DOCS / "guarantees.md").read_text(), "What holds")
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    for guarantee, enforced, tested in rows[2:]:
        assert re.search(r"`(\w+/|SHUNTER_)", enforced), guarantee
        assert "`tests/" in tested, guarantee


def test_the_index_of_decisions_has_each_with_its_title_and_a_summary() -> None:
    lines = (DOCS / "decisions/README.md").read_text().splitlines()
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        title = path.read_text().partition("\n")[0].removeprefix("# ")
        (line,) = [line for line in lines if f"({path.name})" in line]
        assert f"[{title}]" in line
        assert len(line.partition(f"({path.name})")[2]) > 20, line


def test_documents_name_no_setting_that_there_is_not() -> None:
    known = {f"SHUNTER_{name.upper()}" for name in Settings.model_fields}
    # Of the embedded broker, and of the tests.
    known |= {"SHUNTER_CACHE_DIR", "SHUNTER_FUZZ_EXAMPLES", "SHUNTER_KAFKA_VERSION"}
    for document in DOCUMENTS:
        for name in re.findall(r"SHUNTER_[A-Z_]+[A-Z]", document.read_text()):
            assert name in known, f"{name} in {named(document)}"


def test_table_of_the_live_view_has_each_field_of_it() -> None:
    section = (ROOT / "docs/live.md").read_text().split("## Fields\n")[1]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    told = [re.findall(r"`(\w+)`", row) for row in rows]
    parts: tuple[type[Any], ...] = (
        Snapshot,
        live.Window,
        live.EndsView,
        live.Money,
        live.PoolView,
        live.GroupsView,
        live.GroupView,
    )
    parts += (live.Workload, live.FallbackView)
    assert [row for row in told if row] == [[f.name for f in dataclasses.fields(p)] for p in parts]


def test_table_of_rights_is_what_the_roles_have() -> None:
    section = section_of(OPERATIONS, "Rights")
    told = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert told == list(rows())


def test_table_of_commands_is_complete() -> None:
    table = first_column((REFERENCE / "commands.md").read_text(), "Commands")
    told = re.findall(r"`shunter ([a-z -]+?)(?: [A-Z]+)?`", table)
    assert sorted(told) == sorted(commands())


@cache
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
    examples = {next(iter(yaml.safe_load(text))): text for text in blocks(DECLARATIONS, "yaml")}
    (tmp_path / "fleet.yaml").write_text(examples["devices"])
    assert list(load_fleet(tmp_path / "fleet.yaml").pools) == ["boards-eu"]
    assert "nightly" in parse_policy(examples["classes"], "declarations.md").classes


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


@pytest.mark.parametrize(("name", "model"), [("profile", Profile), ("option", Option)])
def test_tables_of_extensions_have_each_attribute(name: str, model: type) -> None:
    text = (DOCS / "extensions.md").read_text().split(f"| attributes of `{name}` |")[1]
    rows = takewhile(lambda line: line.startswith("|"), text.splitlines()[1:])
    told = [word for row in rows for word in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(model))


def test_the_architecture_names_each_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = next(block for block in text.split("```") if "topics/    wire/" in block)
    rooms = {
        path.parent.name
        for package in ("topics", "policies", "streams", "workers", "gateway", "shunter")
        for path in (ROOT / package).glob("*/__init__.py")
        if path.parent.name not in {"defaults", "data"}
    }
    missing = sorted(room for room in rooms if f"{room}/" not in picture)
    assert not missing, missing
    named = set(re.findall(r"\b(\w+)/", picture)) - {"openai", "cpu", "simulated"}
    packages = {"topics", "policies", "streams", "workers", "gateway", "shunter"}
    assert named - packages <= rooms, named - packages - rooms
