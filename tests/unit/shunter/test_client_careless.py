"""Commands for requests and evidence under careless hands: files lost, options that say nothing."""

import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shunter import entry
from topics.credentials import masked

REQUEST = '{"id":"a","model":"m","tenant":"t","body":{"prompt":"p"}}\n'
NO_KAFKA = ("--bootstrap-servers", "127.0.0.1:1")
NO_SERVER = "http://127.0.0.1:1/v1"
MODEL = "llama-3.1-8b"


def shunter(*words: object) -> tuple[int, str]:
    """Run the real command line; return its exit code, and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "shunter", *(w if isinstance(w, bytes) else str(w) for w in words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = done.stdout + done.stderr
    assert "Traceback" not in told
    return done.returncode, told


def test_results_of_before_stay_where_nothing_is_published(tmp_path: Path) -> None:
    """A bad line, or Kafka that isn't there, costs nobody the results of yesterday."""
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    results.write_text("yesterday\n")
    requests.write_text(REQUEST + "{\n")
    code, told = shunter("submit", requests, "--wait", "--output", results, *NO_KAFKA)
    assert (code, results.read_text()) == (1, "yesterday\n"), told
    assert f"{requests}:2: " in told


def test_a_question_is_not_waited_for(tmp_path: Path) -> None:
    """It never has a result; its answer stands elsewhere."""
    requests = tmp_path / "requests.jsonl"
    requests.write_text(REQUEST.replace('"id"', '"quote":true,"id"'))
    code, told = shunter("submit", requests, "--wait", *NO_KAFKA)
    assert code == 1
    assert f"{requests}:1: it asks what it would cost (quote), and gets no result" in told


@pytest.mark.parametrize("option", ["--output", "--errors"])
def test_results_are_not_written_over_the_requests(tmp_path: Path, option: str) -> None:
    """The requests of a file that is named twice are still there, and the option is named."""
    requests, link = tmp_path / "requests.jsonl", tmp_path / "link.jsonl"
    requests.write_text(REQUEST)
    link.symlink_to(requests)
    for name in (requests, link):
        code, told = shunter("submit", requests, "--wait", option, name, *NO_KAFKA)
        assert (code, requests.read_text()) == (1, REQUEST)
        assert f"{option} {name} is the file of the requests" in told


def test_errors_of_before_stay_where_a_request_has_no_result(tmp_path: Path) -> None:
    """Nothing is emptied for a result that can't be read."""
    errors = tmp_path / "errors.jsonl"
    errors.write_text("yesterday\n")
    words = ("results", "a", "--format", "openai-batch", "--errors", errors)
    code, _ = shunter(*words, *NO_KAFKA)
    assert (code, errors.read_text()) == (1, "yesterday\n")


@pytest.mark.parametrize(
    "words",
    [
        "audit report --output",
        "audit proof a --output",
        "audit verify --heads",
        "evidence keys --output",
        f"hardware calibrate {NO_SERVER} --device h100 --model {MODEL} --precision fp8 --output",
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, words: str
) -> None:
    """The file is named, not the Kafka or the model server that would be asked first."""
    missing = tmp_path / "missing" / "file"
    kafka = () if words.startswith("hardware") else NO_KAFKA
    code, told = shunter(*words.split(), missing, *kafka)
    assert code == 1
    assert f"error: {missing}: can't be written: No such file or directory" in told


def test_a_disclosure_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    """It asks nobody, so that it is told when it is written."""
    request, missing = tmp_path / "request.json", tmp_path / "missing" / "file"
    request.write_text(REQUEST)
    code, told = shunter("audit", "disclose", request, "/tenant", "--output", missing)
    assert code == 1
    assert f"error: {missing}: can't be written: No such file or directory" in told


@pytest.mark.parametrize(
    "words",
    [
        ("cancel", b"\xff"),
        ("cancel", "a", "--reason", b"\xff"),
        ("results", b"\xff"),
        ("trace", b"\xff"),
        ("audit", "show", b"\xff"),
    ],
)
def test_arguments_of_other_encodings_are_refused(words: tuple[str | bytes, ...]) -> None:
    """What can't be encoded is named, before Kafka is asked."""
    code, told = shunter(*words, *NO_KAFKA)
    assert code == 2
    assert "is no UTF-8" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("submit {} --in-order", "add that"),
        ("submit {} --wait --format openai-batch", "add that"),
        ("audit report --trust 0f3c5ad1f2b54dd1b1fc0ab1a2ff3e21", "verifies nothing"),
        ("audit report --format html --keys {}", "verifies nothing"),
        ("audit proof a --policy {}", "name it by --log"),
        ("evidence keys --json --output {}", "give one of the two"),
    ],
)
def test_options_that_would_say_nothing_are_refused(tmp_path: Path, words: str, told: str) -> None:
    """Who asks for trust, or for a form, does not believe in vain to have got it."""
    file = tmp_path / "file"
    file.write_text(REQUEST)
    code, found = shunter(*words.format(file).split(), *NO_KAFKA)
    assert code == 1
    assert told in found


@pytest.mark.parametrize("at", ["nan", "inf", "-1", "1764510000000"])
def test_keys_are_revoked_from_a_time_that_there_is(tmp_path: Path, at: str) -> None:
    """No revocation is signed that verifiers can't read, nor one of milliseconds."""
    key, installation = tmp_path / "key.pem", tmp_path / "installation.pem"
    written = tmp_path / "revocation.json"
    for path in (key, installation):
        assert shunter("evidence", "keygen", path)[0] == 0
    words = ("evidence", "revoke", key, "--reason", "r", "--signed-by", installation)
    code, told = shunter(*words, "--output", written, "--at", at)
    assert (code, written.exists()) == (2, False)
    assert "--at" in told


@pytest.mark.parametrize("option", ["--writer", "--may-introduce"])
def test_keys_are_introduced_for_writers_with_a_name(tmp_path: Path, option: str) -> None:
    """An empty variable of a script makes no introduction of nobody."""
    key, installation = tmp_path / "key.pem", tmp_path / "installation.pem"
    for path in (key, installation):
        code, told = shunter("evidence", "keygen", path)
        assert code == 0
        assert told.endswith(f" in {path}\n"), "whole, however long"
    words = ("evidence", "introduce", key, "--signed-by", installation, option, "")
    code, told = shunter(*words, "--output", tmp_path / "introduction.json")
    assert (code, (tmp_path / "introduction.json").exists()) == (1, False)
    assert "name writers" in told


def test_windows_of_a_ledger_end() -> None:
    """An endless window begins at no time."""
    code, told = shunter("ledger", "--window", "inf", *NO_KAFKA)
    assert code == 2
    assert "--window" in told


@pytest.mark.parametrize("words", [("gateway", "--check"), ("worker", "premium-eu", "--check")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_stopped_has_not_passed(
    words: tuple[str, ...], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is told to stop ends well; who waits for a check takes that for its yes."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, "argv", ["shunter", *words])
    seen: list[object] = []
    monkeypatch.setattr("shunter.cli.main", lambda: seen.append(signal.getsignal(number)))
    try:
        entry.main()
        assert seen == [before[number is signal.SIGTERM]]
        monkeypatch.setattr(sys, "argv", ["shunter", *words[:-1]])
        entry.main()
        assert seen[1] != seen[0], "a server of that name has a handler"
    finally:
        for each, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(each, handler)


def test_an_id_and_where_to_begin_are_not_both_taken() -> None:
    """One of the two would be ignored."""
    code, told = shunter("results", "a", "--from-beginning", *NO_KAFKA)
    assert code == 1
    assert "--from-beginning says where following begins" in told


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "ftp://127.0.0.1:1/x", "s3://bucket"])
def test_an_archive_that_nobody_answers_for_is_not_called_empty(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Who takes it for empty would believe that nothing was kept."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    code, told = shunter("audit", "verify", "--archive", url)
    assert code == 1
    assert f"error: {url}: can't be reached or read: " in told
    assert "no evidence is archived" not in told


def test_an_archive_over_http_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """A server that answers 404 has said so."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x"
        code, told = shunter("audit", "verify", "--archive", url)
    finally:
        server.shutdown()
        server.server_close()
    assert (code, f"error: {url}: no evidence is archived there" in told) == (1, True), told


def test_a_url_with_nothing_to_hide_is_told_as_it_is() -> None:
    """A colon that ends the URL in a message cuts off no password."""
    assert masked("s3://bucket: gone") == "s3://bucket: gone"
    assert masked("s3://user:secret gone") == "s3://*** gone"
