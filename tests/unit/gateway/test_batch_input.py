"""Input files of batches: what their lines may be, and what is wrong with others."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from batch_cases import NOW, TENANT, chat_line, file_of

from gateway.batches import lines
from gateway.batches.lines import CheckedInput, Input, line_request_id, run_of_id

ENDPOINT = "/v1/chat/completions"


def source_of(tmp_path: Path, contents: bytes, *, bytes_max: int = 100_000) -> Input:
    path = tmp_path / "input"
    path.write_bytes(contents)
    return Input(os.open(path, os.O_RDONLY), ENDPOINT, TENANT, bytes_max)


def checked(source: Input) -> CheckedInput:
    *_, found = source.check(NOW)
    return found


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_ends_and_blank_lines_are_fine(tmp_path: Path, end: bytes) -> None:
    names = ["a", "b", "c", "ä"]
    written = [json.dumps(chat_line(name), ensure_ascii=False).encode() for name in names]
    contents = b"\xef\xbb\xbf" + end.join([written[0], b"", b"  ", *written[1:]])
    source = source_of(tmp_path, contents)
    found = checked(source)
    assert (found.errors, found.model) == ([], "m")
    source.index()
    assert source.offsets == found.offsets
    assert [source.line(n, NOW).custom_id for n in range(4)] == names


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"nonsense", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id":"a","custom_id":"b"}', "invalid_json_line", None),
        (b'{"custom_id":"\\ud800"}', "invalid_json_line", None),
        (chat_line("b", custom_id=None), "missing_required_parameter", "custom_id"),
        (chat_line("b", custom_id=7), "invalid_value", "custom_id"),
        (chat_line("b", body={"messages": []}), "missing_required_parameter", "model"),
        (chat_line("b", body=[]), "invalid_type", "body"),
        (chat_line("b", method="GET"), "invalid_method", "method"),
        (chat_line("b", url="/v1/embeddings"), "url_mismatch", "url"),
        (chat_line("first"), "duplicate_custom_id", "custom_id"),
        (chat_line("b", wishes=1), "unknown_parameter", "wishes"),
        (chat_line("b", shunter={"wishes": 1}), "unknown_parameter", None),
        (chat_line("b", shunter={"tenant": "another"}), "invalid_value", "tenant"),
        (chat_line("b", shunter={"constraints": {"regions": 7}}), "invalid_type", None),
        (chat_line("b", body=chat_line("b")["body"] | {"stream": True}), "invalid_value", None),
        (chat_line("b", body=chat_line("b" * 200_000)["body"]), "request_too_large", None),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, code: str, param: str | None) -> None:
    found = checked(source_of(tmp_path, file_of([chat_line("first"), line, chat_line("last")])))
    ((error),) = found.errors
    assert (error.line, error.code) == (2, code)
    assert error.message
    if param is not None:
        assert error.param == param


def test_a_file_without_lines_and_one_with_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [e.code for e in checked(source_of(tmp_path, b"\n \r\n")).errors] == ["empty_file"]
    monkeypatch.setattr(lines, "LINES_MAX", 3)
    three = [chat_line(str(n)) for n in range(3)]
    assert checked(source_of(tmp_path, file_of(three))).errors == []
    more = checked(source_of(tmp_path, file_of([*three, chat_line("4")])))
    assert [e.code for e in more.errors] == ["too_many_tasks"]


def test_errors_end_at_a_hundred(tmp_path: Path) -> None:
    found = checked(source_of(tmp_path, b"x\n" * 500))
    assert len(found.errors) == 100


def test_a_line_says_what_it_wants_beside_its_body(tmp_path: Path) -> None:
    body = chat_line("a")["body"] | {"service_tier": "flex", "metadata": {"a": "1"}, "x": 1}
    wishes = {"region": "eu-west", "deadline": "2h", "slo": {"ttft_ms": 5.0}}
    source = source_of(tmp_path, file_of([chat_line("a", body=body, shunter=wishes)]))
    assert checked(source).errors == []
    source.index()
    fields = source.line(0, NOW).wanted.fields
    assert fields["service_tier"] == "flex"
    assert fields["tenant"] == TENANT
    assert fields["constraints"] == {"regions": ["eu-west"]}
    assert fields["completion_window"] == "2h"
    assert fields["body"] == {name: body[name] for name in ("model", "messages", "x")}
    assert fields["metadata"] == {"a": "1"}


def test_ids_tell_line_and_run() -> None:
    for run in ((0, 0), (49_999, 0), (7, 12)):
        request_id = line_request_id(TENANT, "batch_" + "0" * 27, *run)
        assert run_of_id(request_id) == run
        assert len(request_id) <= 128
    ids = {line_request_id(t, f"batch_{b:027x}", 1, 0) for t in "ab" for b in range(2)}
    assert len(ids) == 4


def test_checking_a_file_does_not_keep_its_texts(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x" * 20_000}]
    body = {"model": "m", "messages": messages}
    source = source_of(tmp_path, file_of([chat_line(str(n), body=body) for n in range(300)]))
    tracemalloc.start()
    try:
        found = checked(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.errors, len(found.offsets)) == ([], 300)
    # Of 6 MB; a line is there in a few forms at once.
    assert peak < 1_000_000
