"""The benchmarks' words and tables, without measuring anything."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest
from backtest_cases import setting

import benchmarks.__main__ as program
from benchmarks import guard
from benchmarks.cluster_fixture import Pace
from benchmarks.cost_accounts import CAUSES, DRAIN, PROMPTS, accounts_of
from benchmarks.cost_accounts import table as table_of_accounts
from benchmarks.engine import routing, working
from benchmarks.figures import Figure, compared, table
from benchmarks.mooncake_trace import rows_of, without_prefix
from benchmarks.plan_bound import in_parts
from benchmarks.resource_usage import Used, cores, transaction_us
from benchmarks.throughput import Hall
from benchmarks.workload import MODEL, OTHER_MODEL, make_options
from shunter.plan.capacity import Capacity, capacity
from shunter.plan.market import Market, usd_per_hour
from shunter.plan.span_work import Cut

KEYS = {"name", "value", "reference", "ratio", "reach", "ok"}


def at_most(ratio: float) -> Figure:
    return Figure("memory", ratio * 600, 600, ratio, 1.0, at_most=True, unit="bytes")


@pytest.mark.parametrize(
    ("figure", "ok"),
    [
        (compared("routed", [60, 70, 50], [100, 80, 120], 0.6, against="bare loop"), True),
        (compared("routed", [59, 70, 50], [100, 80, 120], 0.6, against="bare loop"), False),
        (at_most(1.0), True),
        (at_most(1.01), False),
    ],
)
def test_a_figure_tells_whether_it_is_reached(figure: Figure, *, ok: bool) -> None:
    assert figure.ok is figure.as_json()["ok"] is ok
    assert ("| met |" in table([figure])) is ok
    assert ("| not met |" in table([figure])) is not ok


def test_a_figure_is_of_medians_and_keeps_its_rounds() -> None:
    told = compared("routed", [60, 70, 50], [100, 80, 120], 0.6, against="bare loop").as_json()
    assert told.keys() >= KEYS
    assert (told["value"], told["reference"], told["ratio"], told["reach"]) == (60, 100, 0.6, 0.6)
    assert told["rounds"] == {"shunter": [60, 70, 50], "bare loop": [100, 80, 120]}


def test_a_trace_without_prefixes_has_what_no_earlier_turn_had(tmp_path: Path) -> None:
    turns = [(512 * 3, [1, 2, 3]), (512 * 4, [1, 2, 3, 4]), (512 * 4, [1, 2, 3, 4]), (600, [9, 8])]
    lines = [
        {"timestamp": 1000 * n, "input_length": tokens, "output_length": 5, "hash_ids": blocks}
        for n, (tokens, blocks) in enumerate(turns)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of(tmp_path / "t.jsonl", 9, "agent_step", "m")
    assert [row["session"] for row in rows] == ["s0", "s0", "s0", "s3"]
    rest = [without_prefix(row) for row in rows]
    # Of a prompt that is all known the last token is computed.
    assert [row["input_tokens"] for row in rest] == [1536, 512, 1, 600]
    assert not any(row["prefix_tokens"] for row in rest)


def test_accounts_of_a_run_add_up_to_its_cost() -> None:
    asked = setting(rows=40)
    accounts, scores = accounts_of(asked)
    assert sum(accounts.usd.values()) == pytest.approx(scores["cost_usd"])
    assert min(accounts.usd.values()) > -1e-12
    drained = sum(usd for (_, _, cause), usd in accounts.usd.items() if cause == DRAIN)
    # What is shared after the last arrival is whole iterations, not only what few cost more.
    assert 0 < drained < sum(accounts.drained_usd.values()) < scores["cost_usd"]
    assert {row for _, row, _ in accounts.drained_usd} < {each.row for each in asked.arrivals}
    head, _, *rows, sums = table_of_accounts(accounts)
    assert head.count("|") == len(CAUSES) + 3
    prompts = sum(usd for key, usd in accounts.usd.items() if key[2] == PROMPTS)
    assert rows
    assert sums.startswith(f"| all | {prompts:.3f} |")


def test_a_bound_in_parts_is_of_the_least_that_keeps_each_cut() -> None:
    asked = setting(rows=1)
    usd = usd_per_hour({"silicon-us": 1}, asked.fleet, Market())
    cuts = Cut({"silicon-us": 2.0}, 3.0), Cut({"silicon-us": 1.0}, 1.2), Cut({"cpu-eu": 1.0}, -1.0)
    assert in_parts(asked, Capacity({}, 0.0, 0, cuts)) == pytest.approx(1.5 * usd)
    found = capacity(setting(rows=40), Market(), (), 5.0)
    assert 0 < in_parts(asked, found) <= found.bound_usd_per_hour


def test_the_table_tells_notes() -> None:
    figure = compared("routed", [1], [1], 1, against="Faust agent", note="forwards only")
    assert table([figure]).endswith("| met; forwards only |")


class _NoBroker:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


USED = Used.of("shunter", 1024, Pace(1000.0, 2.0, (0.5, 1.5, float("nan"))))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the program, which measures one thing that is said and not measured."""

    def measure(hall: Hall) -> list[Figure]:
        hall.tell(USED)
        return [compared("routed", [2.0] * hall.rounds, [1.0], 1.0, against="bare loop")]

    monkeypatch.setattr(program, "MEASURES", {"routed": measure})
    monkeypatch.setattr(program, "EmbeddedBroker", _NoBroker)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    program.main()


def test_the_last_line_is_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--quick", "--json")

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)
    (figure,) = found["figures"]
    assert figure.keys() >= KEYS
    assert figure["ok"] is True
    assert found["machine"]["command"] == "python -m benchmarks --quick --json"
    (used,) = found["told"]
    assert (used["side"], used["process_us"], used["broker_us"]) == ("shunter", [250.0], 750.0)
    assert used["page_faults"] is None


def test_the_table_goes_between_its_marks_with_the_command_that_made_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{program.BEGIN}\nold\n{program.END}\nafter\n")
    run(monkeypatch, "--quick", "--rounds", "5", "--table", str(page))
    text = page.read_text()
    assert text.startswith(f"before\n{program.BEGIN}\n`python -m benchmarks --quick --rounds 5 ")
    assert "5 rounds on " in text
    assert "| routed | 2 /s |" in text
    assert "old" not in text
    assert text.endswith(f"{program.END}\nafter\n")


def test_what_a_transaction_takes_is_the_difference_between_few_and_many_records() -> None:
    def used(side: str, us: float) -> Used:
        return Used.of(side, 1024, Pace(1000.0, 1.0, (us / 1000, 0.0, 0.0)))

    # 40 us for each request, and 1,000 for each transaction.
    runs = [used("many", 50.0), used("few", 80.0), used("many", 50.0)]
    assert transaction_us(runs, ("few", 25), ("many", 100)) == pytest.approx(1000.0)


def test_cores_are_told_for_each_process_and_the_broker() -> None:
    runs = [Used.of("two", 1024, Pace(1.0, 2.0, (busy, 1.0, 1.5, 0.0))) for busy in (1.8, 2.0, 0.1)]
    other = Used.of("one", 1024, Pace(1.0, 2.0, (0.2, 0.2, 0.0)))
    assert cores([*runs, other], "two") == "0.90 + 0.50, broker 0.75"


RECORDED = {"read": 1.0, "routed": 2.0}


class TestGuard:
    """It goes by ratios, which are said here."""

    @staticmethod
    def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *found: dict[str, float]) -> int:
        recorded = tmp_path / "recorded.json"
        recorded.write_text(json.dumps({"ratios": RECORDED}))
        monkeypatch.setattr(guard, "RECORDED", recorded)
        runs = iter(found)
        monkeypatch.setattr(guard, "ratios", lambda: next(runs))
        monkeypatch.setattr(sys, "argv", ["guard"])
        with pytest.raises(SystemExit) as ended:
            guard.main()
        assert next(runs, None) is None, "it measured less often than it should"
        return int(ended.value.code or 0)

    def test_it_passes_where_nothing_has_fallen_far(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert self.run(monkeypatch, tmp_path, {"read": 0.76, "routed": 3.0}) == 0

    def test_it_fails_where_one_has_fallen_twice(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        fallen = {"read": 1.0, "routed": 1.4}
        assert self.run(monkeypatch, tmp_path, fallen, fallen) == 1
        lines = capsys.readouterr().out.splitlines()
        assert "routed: 1.400, 0.70 of the recorded ratio: below 0.75" in "\n".join(lines)
        assert "read: 1.000, 1.00 of the recorded ratio: well" in lines

    def test_a_neighbour_may_disturb_it_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        disturbed = {"read": 0.5, "routed": 2.0}
        assert self.run(monkeypatch, tmp_path, disturbed, {"read": 1.0, "routed": 2.0}) == 0

    def test_what_is_guarded_was_recorded(self) -> None:
        recorded = json.loads(guard.RECORDED.read_text())["ratios"]
        with guard.works() as works:
            assert recorded.keys() == works.keys()


def test_what_is_guarded_of_the_engine_is_done_to_the_end() -> None:
    # A worker starts no more than a hundred at once, but goes on while it polls.
    for make, requests, topic in ((routing, 6, "evidence"), (working, 300, "results")):
        with closing(make(requests)) as engine:
            for runs in (1, 2):
                engine.run()
                assert len(engine.cluster.records(f"bench.{topic}")) == runs * requests


def test_each_program_reads_its_arguments() -> None:
    """One that doesn't measures for minutes when it is asked for help."""
    folder = Path(guard.__file__).parent
    sources = {path.name: path.read_text() for path in folder.glob("*.py")}
    programs = {name for name, text in sources.items() if '__name__ == "__main__"' in text}
    assert len(programs) > 20
    assert [name for name in programs if ".parse_args(" not in sources[name]] == []


def test_of_a_fleet_some_pools_serve_the_model_and_the_others_another() -> None:
    options = make_options(30, serving=3)
    assert len(options.by_pool) == 30
    assert {model: len(each) for model, each in options.by_model.items()} == {
        MODEL: 9,
        OTHER_MODEL: 81,
    }
