"""`shunter policy backtest` for the careless: files that can't be written, options that clash."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shunter.cli import app
from shunter.console import UserError, check_writable

TRACE = (
    "arrival_s,task,model,input_tokens,output_tokens\n"
    "0.1,chat,llama-3.1-8b,374,44\n"
    "0.2,safety_classification,llama-guard-3-8b,900,5\n"
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def outcome(*words: str | Path) -> Any:
    words = ("policy", "backtest", "--no-bound", *words)
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.mark.parametrize(
    "words",
    [
        ("--assignments",),
        ("--plot",),
        ("--compare", "policies/defaults/policy.yaml", "--differences"),
        ("--quotes", "1", "--quote-errors"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_runs(
    trace: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for path, told in ((tmp_path / "gone/file.png", "No such file"), (tmp_path, "a directory")):
        found = outcome("--trace", trace, *words, path)
        assert isinstance(found.exception, UserError), found.exception
        assert f"{path}: can't be written: " in str(found.exception)
        assert told in str(found.exception)
        assert "shunter:" not in found.stderr


def test_to_check_a_file_leaves_it_and_a_pipe_as_they_are(tmp_path: Path) -> None:
    there, new, pipe = tmp_path / "there", tmp_path / "new", tmp_path / "pipe"
    there.write_text("kept")
    os.mkfifo(pipe)
    check_writable(None, there, new, pipe)
    assert there.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize("words", [("--draws", "1"), ("--plot", "x.png"), ("--assignments", "x")])
def test_quotes_take_no_option_that_they_have_no_part_in(
    trace: Path, words: tuple[str, ...]
) -> None:
    found = outcome("--trace", trace, "--quotes", "1", *words)
    assert f"--quotes tells of quotes alone: leave out {words[0]}" in str(found.exception)


def test_draws_of_runs_that_cost_nothing_have_no_ratio(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE.replace("llama", "no-such"))
    words = ("--trace", trace, "--no-baselines", "--draws", "1")
    told = json.loads(outcome(*words, "--json").stdout)["draws"]["of"]
    assert told["shunter"] == {"cost_usd": [0.0] * 3, "slo_attainment": [0.0] * 3, "over": []}
    assert "of 1 draws" in outcome(*words).stdout


def interrupted(work: str, kill: Callable[[int, int], None] = os.killpg) -> tuple[int, str]:
    """The exit status and words of processes that a terminal interrupts once one says so."""
    begin = "import os, signal, time\nfrom shunter.backtest.parallel_runs import forked\n"
    with subprocess.Popen(
        [sys.executable, "-c", begin + work],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        kill(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=30)
    return process.returncode, told


@pytest.mark.parametrize("kill", [os.killpg, os.kill])
def test_ctrl_c_ends_the_idle_and_the_busy_without_a_word(kill: Callable[[int, int], None]) -> None:
    """A terminal interrupts those that work for others, too; `kill -INT` the first alone."""
    status, told = interrupted(
        "try:\n"
        "    with forked(2, id, None) as processes:\n"
        "        busy = 'import time; print(\"begun\", flush=True); time.sleep(600)'\n"
        "        processes.submit(exec, busy).result()\n"
        "except KeyboardInterrupt:\n"
        "    os._exit(130)\n",
        kill,
    )
    assert (status, told) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_those_that_work_for_a_process_end_with_it(number: int) -> None:
    work = (
        "from shunter.backtest.parallel_runs import forked\n"
        "busy = 'import time; print(\"begun\", flush=True); time.sleep(600)'\n"
        "with forked(2, id, None) as processes:\n"
        "    processes.submit(exec, busy).result()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", work], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        process.wait(30)
        end_at = time.monotonic() + 30
        while is_any_left(process.pid) and time.monotonic() < end_at:
            time.sleep(0.02)
        left = is_any_left(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
        assert not left


def is_any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_while_processes_are_forked_is_not_lost() -> None:
    status, told = interrupted(
        "def adopt(_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(0.5)\n"
        "try:\n"
        "    with forked(1, adopt, None) as processes:\n"
        "        processes.submit(time.sleep, 600).result()\n"
        "except KeyboardInterrupt:\n"
        "    os._exit(130)\n"
    )
    assert (status, told) == (130, "")


def test_work_that_is_given_up_ends_without_a_word() -> None:
    script = (
        "import time\n"
        "from shunter.backtest.parallel_runs import forked\n"
        "try:\n"
        "    with forked(2, id, None) as processes:\n"
        "        begun = [processes.submit(time.sleep, 600) for _ in range(40)]\n"
        "        raise ValueError\n"
        "except ValueError:\n"
        "    print(all(each.cancelled() or each.exception() for each in begun))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"True\n", b"")


def test_ctrl_c_while_modules_are_imported_is_no_traceback() -> None:
    script = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'shunter.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['shunter', 'plan']\n"
        "from shunter.entry import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")
