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


NESTED = '{"a":' * 450 + "1" + "}" * 450
STRANGE = {
    "evidence": [
        *(NESTED, "[1e999]", "NaN", '{"x":"\\ud800"}', '{"x":1%s}' % ("0" * 400)),
        '{"request_id":"x","step":["executed"],"at":1,"source":{"topic":"yard.requests"}}',
        '{"request_id":"x","step":"placed","source":{"topic":".requests"},"profile":{"deadline":"x"}}',
    ],
    "keys": [
        *(NESTED, "[]", "5", '{"revocation":{"key":"%s","at":"x","reason":"r"}}'),
        '{"published":{"statement":{"key":"y","public_key":"AAAA","writer":5,"valid_from":"x"}}}',
    ],
    "roots": [NESTED, "[]", '{"statement":5}'],
}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in STRANGE.items() for text in texts]
)
async def test_what_anybody_wrote_beside_a_trail_is_flagged_and_ends_no_check(
    kind: str, text: str, tmp_path: Path
) -> None:
    trail = await make_trail()
    records = getattr(trail, kind)
    key = next(r.key for r in trail.keys if (r.key or b"").startswith(b"key/")) or b""
    name = key.decode().removeprefix("key/")
    value = (text.replace("%s", name)).encode()
    named = f"revoked/{name}".encode() if "revocation" in text else b"x"
    last = records[-1]
    records.append(last._replace(offset=last.offset + 1, key=named, value=value))
    expected = {"evidence": "altered", "keys": "false_entry", "roots": "unreadable"}[kind]
    assert expected in kinds_found(trail, tmp_path)


def test_ends_and_salts_that_are_none_are_left_out() -> None:
    whole = {"request_id": "r", "step": "executed", "at": 1.0}
    changes = [{"request_id": []}, {"step": []}, {"at": "x"}, {"at": None}]
    for change in changes:
        found: list[str] = []
        rows = [{"value": whole | change}, {"raw": "AAAA"}, {"value": 5}]
        RESULTS.check_results([], rows, {}, 0.0, lambda kind, *_, to=found: to.append(kind))
        assert not found
    salts = [{"raw": "AA"}, {"value": None}, {"value": {"id": [], "salt": "AAAA"}}]
    salts += [{"value": {"id": "a", "salt": salt}} for salt in (5, "no base64", None)]
    good = {"value": {"id": "b", "salt": "AAAA"}}
    assert list(RESULTS.keys_of([*salts, good], b"s")) == ["b"]


@pytest.mark.parametrize("line", ["", "[]", "5", '{"partition":0}', "[" * 5000, '{"key":1}'])
def test_a_line_that_is_none_of_an_export_is_told(line: str, tmp_path: Path) -> None:
    export(asyncio.run(make_trail()), tmp_path)
    with (tmp_path / "roots.jsonl").open("a") as file:
        file.write(f"{line}\n")
    done = run_it(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("can't be read: roots.jsonl, line ")
    assert len(done.stderr.splitlines()) == 1


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
