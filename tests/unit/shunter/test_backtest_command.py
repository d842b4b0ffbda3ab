"""`shunter policy backtest` as users run it: its report, its files, its errors."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from backtest_cases import FLEET, setting
from rich.console import Console
from typer.testing import CliRunner

from policies.backtest.workload import compress, repeat
from policies.config.schema import DeclarationError
from shunter.backtest.differences import COLUMNS as DIFFERENCES
from shunter.backtest.draws import draws, summary
from shunter.backtest.files import COLUMNS, read_trace
from shunter.backtest.suite import scaled
from shunter.cli import app
from shunter.commands import policy_backtest
from shunter.console import UserError
from streams.config.declarations import packaged

HEADER = "arrival_s,task,model,input_tokens,output_tokens,prefix_tokens,session,source\n"
ROWS = (
    "0.000,chat,llama-3.1-8b,374,44,0,,a:1\n"
    "0.255,agent_step,gpt-oss-120b,230,45,0,f50,b:51\n"
    "0.300,embedding,minilm-embedding,600,0,0,,c:1\n"
    "0.500,summarization,llama-3.1-8b,2000,150,0,,d:1\n"
    "4.000,chat,llama-3.1-70b,900,200,0,,a:2\n"
)
SCORES = {
    *("cost_usd", "slo_attainment", "slo_by_task", "deadline_misses", "rejected"),
    *("constraint_violations", "p50_ttft_ms", "p99_ttft_ms", "mean_batch_size", "missed_by_task"),
    *("p50_tpot_ms", "p99_tpot_ms", "p50_finish_s", "p99_finish_s", "refusals"),
    *("held", "mean_held_s", "p50_held_s", "p99_held_s"),
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + ROWS)
    return path


def invoke(*words: str | Path) -> Any:
    result = CliRunner().invoke(app, ["policy", "backtest", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_the_report_has_what_programs_rely_on(trace: Path) -> None:
    report = json.loads(invoke("--trace", trace, "--json").stdout)
    assert set(report["policies"]) == {
        *("shunter", "shunter_premium", "all_premium", "round_robin", "least_loaded"),
        *("lowest_latency", "cheapest_blind", "static_rules"),
    }
    for scores in report["policies"].values():
        assert scores.keys() >= SCORES
        assert scores["constraint_violations"] == 0
    ours = report["policies"]["shunter"]
    assert ours["slo_attainment"] == 1.0
    assert 0 < report["lower_bound_usd"] <= ours["cost_usd"]
    assert report["calibration"]["promises"] == 5


def test_the_table_names_each_policy_and_the_bound(trace: Path) -> None:
    shown = invoke("--trace", trace).stdout
    assert "lower bound" in shown
    for word in ("shunter", "calibration"):
        assert word in shown


def test_the_tables_fit_a_terminal_and_say_who_missed_what(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace.write_text(HEADER + ROWS + "5.0,safety_classification,no-such-model,10,10,0,,x\n")
    monkeypatch.setattr(policy_backtest, "out", Console(width=80, force_terminal=False))
    shown = invoke("--trace", trace, "--no-bound").stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    money, times = [row for row in rows if row[:1] == ["static_rules"]]
    assert money[3:7] == ["83.33%", "1", "1", "0"]
    assert len(times) == 10
    assert ["safety_classification", "1", "0.00%", "0", "0", "1"] in rows
    assert ["chat", "2", "100.00%", "0", "0", "0"] in rows
    assert "without an answer, shunter: unknown_model 1" in shown
    assert "without an answer, static_rules: no_pool 1" in shown


def test_each_row_of_the_trace_has_its_assignment(trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    report = json.loads(
        invoke(
            "--trace", trace, "--no-baselines", "--no-bound", "--assignments", path, "--json"
        ).stdout
    )
    with path.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert tuple(rows[0]) == COLUMNS
    assert [row["row"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert {row["status"] for row in rows} == {"completed"}
    assert sum(float(row["cost_usd"]) for row in rows) == pytest.approx(
        report["policies"]["shunter"]["cost_usd"]
    )
    for row in rows:
        times = [float(row[f"{t}_s"]) for t in ("dispatched", "started", "first_token", "finished")]
        assert times == sorted(times)
        assert row["path"] in {"direct", "batch"}
        assert int(row["device"]) >= 0
    assert report["lower_bound_usd"] is None


def test_a_trace_is_the_same_gzipped_under_any_name_and_with_a_byte_order_mark(
    trace: Path, tmp_path: Path
) -> None:
    packed, marked = tmp_path / "trace", tmp_path / "trace.csv"
    packed.write_bytes(gzip.compress(trace.read_bytes()))
    marked.write_bytes(b"\xef\xbb\xbf" + trace.read_bytes())
    assert read_trace(packed) == read_trace(marked) == read_trace(trace)
    assert len(read_trace(None)) == 2000


def test_the_plot_is_a_picture(trace: Path, tmp_path: Path) -> None:
    invoke("--trace", trace, "--no-baselines", "--no-bound", "--plot", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_two_policies_are_compared_request_by_request(trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(packaged("policy.yaml").replace("window_s: 45", "window_s: 0"))
    report = json.loads(
        invoke(
            *("--trace", trace, "--no-baselines", "--no-bound"), "--compare", other, "--json"
        ).stdout
    )
    found = report["differences"]
    assert set(report["policies"]) == {"shunter", "compared"}
    assert found["cost_usd"] == [
        report["policies"][name]["cost_usd"] for name in ("shunter", "compared")
    ]
    assert len(found["listed"]) == found["placed_otherwise"] <= 5


def test_what_a_compared_policy_rejects_before_it_decides_is_in_neither_run(
    trace: Path, tmp_path: Path
) -> None:
    other, words = tmp_path / "other.yaml", ("--trace", trace, "--no-baselines", "--no-bound")
    bound = "tenants: {default: {bound: {regions: [us-east]}}}"
    text = packaged("policy.yaml").replace("tenants: {}", bound)
    other.write_text(text.replace("  chat:\n", "  chat:\n    bound: {regions: [eu-west]}\n", 1))
    all_of_it = json.loads(invoke(*words, "--json").stdout)["requests"]
    result = invoke(*words, "--compare", other, "--json")
    chats = sum(",chat," in line for line in ROWS.splitlines())
    assert json.loads(result.stdout)["requests"] == all_of_it - chats
    assert f"{chats} left out of both" in result.stderr


def test_each_difference_has_a_row(trace: Path, tmp_path: Path) -> None:
    other, path = tmp_path / "other.yaml", tmp_path / "out.csv"
    other.write_text(packaged("policy.yaml").replace("window_s: 45", "window_s: 0"))
    trace.write_text(HEADER + ROWS + "5.0,chat,no-such-model,10,10,0,,x\n")
    words = ("--trace", trace, "--no-baselines", "--no-bound", "--json")
    report = json.loads(invoke(*words, "--compare", other, "--differences", path).stdout)
    with path.open(newline="") as text:
        found = list(csv.DictReader(text))
    assert tuple(found[0]) == DIFFERENCES
    assert len(found) == report["differences"]["placed_otherwise"]
    first = next(row for row in found if row["row"] == "3")
    assert (first["task"], first["first_path"], first["second_path"]) == (
        *("summarization", "batch", "direct"),
    )
    assert (first["first_status"], first["second_attained"]) == ("completed", "True")
    listed = next(each for each in report["differences"]["listed"] if each["row"] == 3)
    assert [float(first[f"{n}_cost_usd"]) for n in ("first", "second")] == listed["cost_usd"]
    assert float(first["second_finished_s"]) < float(first["first_finished_s"])
    # It waited under the first, which had looked at what it would cost at once.
    assert first["first_expected_of_other_usd"] == first["second_expected_usd"] != ""
    assert float(first["second_expected_of_other_usd"]) > 0
    with pytest.raises(UserError, match="--differences is of --compare"):
        invoke(*words, "--differences", path)


def test_a_rate_compresses_arrivals_and_a_scale_grows_the_fleet(trace: Path) -> None:
    words = ("--trace", trace, "--no-baselines", "--no-bound", "--json")
    report = json.loads(invoke(*words, "--rate", "10", "--fleet-scale", "2").stdout)
    assert (report["rate"], report["fleet_scale"]) == (10.0, 2.0)
    compressed = [a.arrival_s for a in compress(read_trace(trace), 10)]
    assert compressed == pytest.approx([0, 0.0255, 0.03, 0.05, 0.4])
    counts = {name: pool.count for name, pool in FLEET.pools.items()}
    assert {n: p.count for n, p in scaled(FLEET, 2).pools.items()} == {
        name: 2 * count for name, count in counts.items()
    }
    # Never less than one replica, which may be more than one device.
    assert scaled(FLEET, 0.01).pools["premium-us"].count == 2


def test_replies_migrate_where_that_is_asked_for() -> None:
    words = ("--rate", "10", "--fleet-scale", "10", "--no-baselines", "--no-bound", "--json")
    stay, moving = (json.loads(invoke(*words, *more).stdout) for more in ((), ("--migrate",)))
    assert (stay["migrate"], moving["migrate"]) == (False, True)
    before, now = (each["policies"]["shunter"] for each in (stay, moving))
    assert before["migrations"] == 0 < now["migrations"]
    assert now["cost_usd"] < before["cost_usd"]


def test_a_trace_is_repeated_after_itself_with_sessions_of_its_own(
    trace: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.csv"
    words = ("--trace", trace, "--no-baselines", "--no-bound", "--json", "--assignments", path)
    report = json.loads(invoke(*words, "--repeat", "3", "--rate", "2").stdout)
    assert (report["requests"], report["repeat"]) == (15, 3)
    with path.open(newline="") as text:
        sent = [float(row["dispatched_s"]) for row in csv.DictReader(text) if row["row"] in "05"]
    assert sent[1] - sent[0] == pytest.approx(2.0)  # 4 s at twice the rate
    arrivals = read_trace(trace)
    again = repeat(arrivals, 3)
    assert again[:5] == arrivals
    assert [a.row for a in again] == list(range(15))
    assert [a.arrival_s for a in again[5:]] == [n + a.arrival_s for n in (4, 8) for a in arrivals]
    assert [a.session for a in again if a.session] == ["f50", "1/f50", "2/f50"]
    with pytest.raises(UserError, match="more than 2,000,000 requests"):
        invoke("--repeat", "1000", "--no-baselines", "--no-bound", "--trace", _long(tmp_path))


def _long(folder: Path) -> Path:
    path = folder / "long.csv"
    path.write_text(HEADER + 2001 * "0.0,chat,llama-3.1-8b,10,10,0,,a\n")
    return path


def test_a_reality_is_hidden_from_the_policy_and_told_to_its_twin(
    trace: Path, tmp_path: Path
) -> None:
    reality = tmp_path / "reality.yaml"
    reality.write_text("speed: {silicon-us: 0.5}\nnoise: 0.1\n")
    words = ("--trace", trace, "--no-baselines", "--reality", reality, "--json")
    report = json.loads(invoke(*words).stdout)
    assert set(report["policies"]) == {"shunter", "shunter_told"}
    assert report["lower_bound_usd"] is None
    assert report["lower_bound_note"] == "how fast each replica really is, nobody knows beforehand"


@pytest.mark.slow
def test_a_fleet_too_small_for_its_work_has_no_bound_and_all_else_is_told(tmp_path: Path) -> None:
    fleet, trace, out = (tmp_path / name for name in ("fleet.yaml", "trace.csv", "out.csv"))
    fleet.write_text(
        "pools: {only: {device: h200, count: 2, region: eu-west, serves: [{model: llama-3.1-70b,"
        " variant: fp8, precision: fp8, max_batch: 64, tensor_parallel: 2}]}}\n"
    )
    trace.write_text(HEADER + 400 * "1.0,long_context,llama-3.1-70b,30000,300,0,,x\n")
    words = ("--trace", trace, "--fleet", fleet, "--no-baselines", "--assignments", out)
    result = invoke(*words, "--json")
    report = json.loads(result.stdout)
    assert report["lower_bound_usd"] is None
    assert "the fleet is too small" in report["lower_bound_note"]
    assert report["policies"]["shunter"]["cost_usd"] > 0
    assert len(out.read_text().splitlines()) == 401
    assert "no lower bound: no schedule serves all of it in time" in invoke(*words).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request"),
        (HEADER, "holds no request"),
        ("task,model\nchat,m\n", "row 0: column arrival_s is missing"),
        (HEADER + ROWS.replace("374", "-1"), "row 0: input_tokens is '-1'"),
        (HEADER + ROWS.replace("374", "99999999999"), "row 0: input_tokens is '99999999999'"),
        (HEADER + ROWS.replace("0.255", "nan"), "row 1: arrival_s is 'nan'"),
        (HEADER + ROWS.replace("4.000", "1700000000"), "row 4: arrival_s is '1700000000'"),
        (HEADER + ROWS.replace("0.300", "0.100"), "row 2: arrival_s 0.1 is before"),
        (
            HEADER + ROWS.replace("chat", "gossip"),
            r"trace\.csv: row 0: task 'gossip' is not one of",
        ),
    ],
)
def test_a_bad_trace_is_named_by_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        invoke("--trace", path, "--no-baselines", "--no-bound")


def test_a_missing_file_and_one_that_is_no_gzip_are_errors_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="can't be read"):
        read_trace(tmp_path / "bad.csv.gz")


def test_a_bad_reality_is_named_by_field(trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "reality.yaml"
    path.write_text("speed: {silicon-us: 0}\n")
    with pytest.raises(DeclarationError, match=r"speed\.silicon-us"):
        invoke("--trace", trace, "--reality", path)
    path.write_text("outages: [{pool: silicon-us, from_s: 5, to_s: 5}]\n")
    with pytest.raises(DeclarationError, match="to_s must be after from_s"):
        invoke("--trace", trace, "--reality", path)
    path.write_text("speed: {nowhere: 2}\n")
    with pytest.raises(UserError, match="no such pool in the fleet: nowhere"):
        invoke("--trace", trace, "--reality", path)


def test_a_request_that_no_pool_can_serve_is_rejected_and_counted(
    trace: Path, tmp_path: Path
) -> None:
    trace.write_text(HEADER + ROWS + "5.0,chat,no-such-model,10,10,0,,x\n")
    path = tmp_path / "out.csv"
    words = ("--trace", trace, "--no-bound", "--assignments", path, "--json")
    report = json.loads(invoke(*words).stdout)
    for scores in report["policies"].values():
        assert scores["rejected"] == 1
    assert path.read_text().splitlines()[-1] == "5,,,,,,,,,,0.0,rejected"


@pytest.mark.slow
def test_draws_tell_what_the_model_s_error_does() -> None:
    case = setting(rows=150)
    found = list(draws(case, 3))
    factors = [each.reality.factors("silicon-us") for each in found]
    assert len(set(factors)) == 3
    assert all(
        each.reality.factors("lpddr-eu") == each.reality.factors("lpddr-us") for each in found
    )
    # Prompts by one factor, decoding by another.
    assert factors[0].compute == factors[0].prompt != factors[0].memory == factors[0].step
    told = summary(found)
    assert told["shunter"]["over"] == [1.0, 1.0, 1.0]
    low, middle, high = told["all_premium"]["cost_usd"]
    assert low < middle < high
    again = [each.reality for each in draws(case, 3)]
    assert again == [each.reality for each in found]
