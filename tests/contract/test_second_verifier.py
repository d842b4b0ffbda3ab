"""The second verifier shares no code with the first, and they find the same."""

import ast
import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import rfc8785
from audit_cases import Trail, changed, make_trail
from hypothesis import given, settings
from hypothesis import strategies as st
from second_verifier import FORMATS, RESULTS, SCRIPT, export, second_findings
from tampers import TAMPERS

from shunter.audit.findings import Findings
from shunter.audit.stories import Stories
from streams.evidence.projection import decode_step


def kinds_found(trail: Trail, directory: Path) -> set[str]:
    export(trail, directory)
    return set(second_findings(directory))


def test_it_imports_nothing_of_the_first() -> None:
    names = {
        name.split(".")[0]
        for file in (SCRIPT, *SCRIPT.parent.glob("trail_*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    standard = {name for name in names if name in sys.stdlib_module_names}
    own = {path.stem for path in SCRIPT.parent.glob("trail_*.py")}
    assert names - standard == {"cryptography", "pyarrow", *own}


@pytest.mark.parametrize("tamper", [None, *TAMPERS], ids=lambda t: getattr(t, "__name__", "none"))
async def test_both_agree(tamper: Callable[[Trail], None] | None, tmp_path: Path) -> None:
    trail = await make_trail()
    if tamper is not None:
        tamper(trail)
    # The progress is no part of an export.
    trail.progress = []
    first = await trail.verified()
    assert kinds_found(trail, tmp_path) == set(first.counts)


async def test_both_find_what_is_added_to_a_signed_statement(tmp_path: Path) -> None:
    trail = await make_trail()
    trail.roots[0] = changed(trail.roots[0], b'{"chain":', b'{"note":"paid","chain":')
    assert (await trail.verified()).counts["unreadable"] == 1
    assert "unreadable" in kinds_found(trail, tmp_path)


@pytest.mark.parametrize(("ends", "told"), [(1, []), (2, ["ended_twice"])])
def test_a_second_run_of_the_quality_watch_ends_once_too(ends: int, told: list[str]) -> None:
    task = {"task": "quality-reference", "at": 1.0}
    reroutes = {"source": {"topic": "yard.reroutes", "partition": 0, "offset": 0}}
    lane = {"source": {"topic": "yard.pool.p.batch", "partition": 0, "offset": 0}}
    steps = [task | reroutes | {"request_id": "s", "step": "held"}]
    steps += ends * [task | lane | {"request_id": "s", "step": "executed"}]
    found: list[str] = []
    rows = [{"value": step, "key": "s", "where": "here"} for step in steps]
    RESULTS.check_stories(rows, lambda kind, *_: found.append(kind))
    first = Findings()
    stories = Stories(first)
    for step in steps:
        stories.add(decode_step(json.dumps(step).encode()), "here")
    stories.finish(is_whole=True, now=2.0)
    assert found == told == list(first.counts)


def run_it(directory: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, directory]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    trail = asyncio.run(make_trail())
    export(trail, tmp_path)
    done = run_it(tmp_path)
    expected = """16 records, 1 chains: verified, so far as it was checked
not checked: whose the keys are (--trust)
not checked: whether the newest was cut off by who runs the system (--heads, --log)
not checked: whether all was made anew by who has the keys (--log)
not checked: results (--results)
not checked: offsets, partitions and Kafka's times of evidence, which nobody signed
not checked: whether what was signed is true
"""
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    del trail.evidence[0]
    export(trail, tmp_path)
    done = run_it(tmp_path)
    assert done.returncode == 1
    assert "missing: yard.router-yard.requests-0: leaf 0" in done.stdout


@settings(deadline=None)
@given(
    st.floats(-sys.float_info.max, sys.float_info.max)
    | st.text()
    | st.dictionaries(st.text(), st.integers(-9, 9))
)
def test_its_canonical_json_is_that_of_the_standard(value: object) -> None:
    try:
        expected = rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return
    assert FORMATS.jcs(json.loads(json.dumps(value))).encode() == expected
