"""The savings report: traffic from evidence alone, replays beside it, and the page."""

import math
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest
from stream_cases import MODEL, START, Yard, request
from typer.testing import CliRunner

from policies import DeclarationError, Policy, compile_options, tag
from policies.backtest.fault_model import Reality
from policies.backtest.workload import profiles_of
from policies.config.series import Series
from shunter.backtest.suite import Setting, run_one, shunter
from shunter.cli import app
from shunter.console import UserError
from shunter.logs.reading import TrailRow
from shunter.savings.counterfactuals import TOLD, known, planned, setting_of
from shunter.savings.page import as_page
from shunter.savings.report import ReportCommands, savings
from shunter.savings.traffic import EvidenceTraffic, Miss
from topics import Envelope, Evidence, Placement, Source, Usage, encode, parse_request
from topics.records.profile import Tag

YARD = Yard()
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "which track?"}]}
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "flex": {"deadline": START + 71, "tenant": "acme", "service_tier": "flex"},
    "slo": {"slo": {"ttft_ms": 700, "tpot_ms": 30}},
    "summary": {"task": "summarization"},
    "at-once": {"task": "summarization", "hints": {"batchable": False, "output_tokens": 17}},
    "may-wait": {"hints": {"batchable": True}},
    "priority": {"task": "summarization", "service_tier": "priority"},
    "bound": {"constraints": {"regions": ["eu-west"], "precisions": ["any"], "data_class": None}},
    "regulated": {
        "task": "summarization",
        "constraints": {"data_class": "regulated", "exclude_pools": ["premium-us"]},
    },
    "cheap": {
        "constraints": {"max_cost_usd": 0.01, "pools": ["boards-us"], "precisions": ["int8"]}
    },
    "short": {"body": CHAT | {"max_tokens": 5}},
    "several": {"body": CHAT | {"n": 3}},
    "listed": {
        "url": "/v1/completions",
        "body": {"model": MODEL, "prompt": ["which", "track"], "best_of": 2, "max_tokens": 5},
    },
    "stream": {"body": CHAT | {"stream": True}, "task": "summarization"},
}
COMMANDS = ReportCommands(("--archive", "file:///a b"), ())


def row(evidence: Evidence, offset: int = 0) -> TrailRow:
    return TrailRow(0, offset, None, encode(evidence), evidence.at, "")


def decision(name: str, at: float = START, **changes: Any) -> Evidence:
    """Return the evidence of a request's first decision."""
    fields = {"created_at": at} | ASKED.get(name, {}) | {"id": name}
    parsed = parse_request(orjson.dumps(request(**fields)), bytes_max=1_000_000)
    tagged = tag(parsed, YARD.policy, received_at=at, now=at + 0.5, ingest_partition=0)
    profile = replace(tagged.profile, **changes.pop("profile", {}))
    return Evidence(
        name,
        "placed",
        at + 0.5,
        "router",
        Source("t.requests", 0, 0),
        tenant=profile.tenant,
        task=profile.task,
        model=profile.model,
        tags=tagged.tags,
        profile=profile,
        **changes,
    )


def end(
    name: str, at: float, step: Any = "executed", cost: float = 0.25, **changes: Any
) -> Evidence:
    fields: dict[str, Any] = {
        "tenant": "default",
        "task": "chat",
        "placement": Placement("premium-eu", "fast", "yard-8b-fp8", "fp8", "eu-west", "direct"),
        "promised": Envelope(cost, 0.5, 1.0),
        "got": Envelope(cost, 0.5, 1.0),
        "usage": Usage(40, 30),
    }
    return Evidence(name, step, at, "worker", Source("t.pool", 0, 0), **(fields | changes))


def traffic(*rows: Evidence, start: float = 0.0, end: float = math.inf) -> EvidenceTraffic:
    found = EvidenceTraffic(start, end)
    for offset, each in enumerate(rows):
        found.add(row(each, offset))
    return found


@pytest.mark.parametrize("name", ASKED)
def test_a_request_is_tagged_from_its_evidence_as_it_was(name: str) -> None:
    first = decision(name)
    found = traffic(first, end(name, START + 2))
    (profile,) = profiles_of(found.arrivals(), YARD.fleet, YARD.policy)
    was = first.profile
    assert was is not None
    moved = {
        "id": was.id,
        "created_at": was.created_at,
        "deadline": profile.deadline + START,
        "routed_at": was.routed_at,
        # Its end tells how long the prompt was.
        "input_tokens": was.input_tokens,
        "certain_tokens": was.certain_tokens,
    }
    assert profile.input_tokens == 40
    assert replace(profile, **moved) == was


def test_bills_add_up_by_class_pool_and_tenant_within_the_span() -> None:
    found = traffic(
        decision("a"),
        decision("b", START + 1),
        decision("late", START + 2),
        end("a", START + 5, cost=0.25),
        end("b", START + 6, "failed", cost=0.5, got=None, usage=None, tenant="acme", reason="busy"),
        end("late", START + 90, cost=4.0),
        start=START + 1,
        end=START + 60,
    )
    assert (found.total.requests, found.total.completed, found.total.paid_usd) == (2, 1, 0.25)
    assert found.open == 1
    assert {name: bill.requests for name, bill in found.bills["tenant"].items()} == {
        "default": 1,
        "acme": 1,
    }
    for bills in found.bills.values():
        assert sum(bill.paid_usd for bill in bills.values()) == found.total.paid_usd
    assert found.total.sources.spans == {0: (3, 4)}
    assert found.total.sources.examples == ["a", "b"]
    first, second = found.arrivals()
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.0)
    assert (first.output_tokens, second.output_tokens, found.unanswered) == (30, 100, 1)


def test_a_miss_says_why() -> None:
    late, slow = Envelope(0.25, 2.0, 3.0), Envelope(0.25, 9.0, 10.0)
    found = traffic(
        *(decision(name) for name in ("no-place", "broken", "failed")),
        decision("again"),
        replace(decision("again"), attempt=2),
        end("no-place", START + 3, promised=late, got=late),
        end("broken", START + 10, got=slow),
        end("failed", START + 4, "failed", got=None, usage=None, reason="pool_unavailable"),
        end("again", START + 10, got=slow, attempt=2),
    )
    assert {miss: sources.examples for miss, sources in found.misses.items()} == {
        Miss("chat", "ttft", "no place was faster"): ["no-place"],
        Miss("chat", "ttft", "served later than promised"): ["broken"],
        Miss("chat", "deadline", "failed: pool_unavailable"): ["failed"],
        Miss("chat", "ttft", "needed another try"): ["again"],
    }


def test_what_no_replay_can_have_is_told() -> None:
    found = traffic(
        decision("cancelled"),
        decision("kept"),
        end("cancelled", START + 3, "cancelled", got=None, usage=None),
        end("unknown", START + 3),
        end("kept", START + 4),
    )
    found.add(TrailRow(0, 9, None, b"no json", START, ""))
    assert found.left_out == {
        "cancelled": 1,
        "without a decision in the evidence": 1,
        "evidence that can't be read": 1,
    }
    assert [arrival.request and arrival.request.id for arrival in found.arrivals()] == ["kept"]


def test_a_clock_that_is_wrong_moves_no_request_by_more_than_a_minute() -> None:
    years_ago = {"created_at": 0.0, "routed_at": START + 0.5}
    found = traffic(
        decision("a"),
        decision("b", profile=years_ago),
        end("a", START + 2),
        end("b", START + 2),
    )
    assert [a.arrival_s for a in found.arrivals()] == [0.0, 59.5]


def test_replays_pay_the_prices_of_the_days_of_the_traffic() -> None:
    """A replay's time counts from the first request."""
    steps = ((START - 100.0, 1.0), (START + 60.0, 3.0))
    fleet = YARD.fleet.model_copy(update={"series": {"power": Series(steps=steps)}})
    found = traffic(decision("a", START), end("a", START + 2))
    (first,) = found.arrivals()
    setting = setting_of(found, fleet, YARD.policy)
    assert setting.fleet.series["power"].steps == (
        (START - 100.0 - found.first_at, 1.0),
        (START + 60.0 - found.first_at, 3.0),
    )
    assert (first.arrival_s, found.first_at) == (0.0, pytest.approx(START, abs=1.0))


@cache
def report() -> dict[str, Any]:
    """Return the report of thirty requests, a third of which may wait and a third bound."""
    names = ("plain", "summary", "regulated")
    rows = []
    for number in range(30):
        at, name = START + 2.0 * number, names[number % 3]
        first = decision(name, at)
        request_id = f"{name}-<{number}>"
        profile = first.profile and replace(first.profile, id=request_id)
        rows += [
            replace(first, request_id=request_id, profile=profile),
            end(request_id, at + 3, task=first.task),
        ]
    found = traffic(*rows)
    setting = setting_of(found, YARD.fleet, YARD.policy)
    scored = [plan.run() for plan in planned(setting)]
    told = savings(found, len(setting.arrivals), scored, (0.001, None), COMMANDS, ["boards-us"])
    return told | {"span": "from <then>", "trail": "file:///a"}


class TestReport:
    """On thirty requests."""

    @property
    def found(self) -> dict[str, Any]:
        return report()

    def test_each_policy_is_compared_with_the_replay_of_this_one(self) -> None:
        policies = self.found["policies"]
        ours = policies["shunter"]
        assert set(policies) <= set(TOLD)
        assert ours["saved_usd"] == 0
        for each in policies.values():
            assert each["saved_usd"] == each["cost_usd"] - ours["cost_usd"]
            assert each["command"].startswith("shunter report savings --archive 'file:///a b'")

    def test_what_is_asked_is_the_difference_of_two_replays(self) -> None:
        policies, asked = self.found["policies"], self.found["questions"]
        usd = {name: each["cost_usd"] for name, each in policies.items()}
        assert asked["waiting_earned"]["usd"] == usd["without_waiting"] - usd["shunter"]
        assert asked["regions_cost"]["usd"] == usd["shunter"] - usd["without_regions"]
        # The regulated third may go to the cheap boards once it is bound to no region.
        assert asked["waiting_earned"]["usd"] > 0
        assert asked["constraints_cost"]["usd"] > 0

    def test_the_page_has_each_figure_linked_and_nothing_of_a_client_unescaped(self) -> None:
        page = as_page(self.found)
        links, anchors, tags = [], [], set()

        class Reader(HTMLParser):
            def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
                tags.add(name)
                for key, value in attributes:
                    if name == "a" and key == "href":
                        links.append((value or "").removeprefix("#"))
                    if key == "id":
                        anchors.append(value)

        Reader().feed(page)
        assert list(dict.fromkeys(links)) == anchors
        numbers = re.findall(r"<td class=n>(.*?)</td>", page)
        assert not [each for each in numbers if each and not each.startswith("<a href=#e")]
        (summary,) = re.findall(r"<p><span class=big>.*?</p>", page)
        assert len(re.findall(r"<a href=#e1>", summary)) == 4
        sources = page.split("<dt id=")[1:]
        assert all(each.count("made again by <code>shunter ") == 1 for each in sources)
        assert len(anchors) >= len(self.found["policies"]) + len(self.found["questions"])
        assert not tags & {"script", "img", "link", "then", "0"}
        assert "shunter audit show --archive &#x27;file:///a b&#x27; -- " in page

    def test_only_some_replays_are_made_if_told_so(self) -> None:
        arrivals = known(
            traffic(decision("a"), end("a", START + 1)).arrivals(), YARD.fleet, YARD.policy
        )
        setting = Setting(arrivals, YARD.fleet, YARD.policy, Reality())
        assert [p.name for p in planned(setting, ["round_robin"])] == ["shunter", "round_robin"]


def test_requests_of_a_class_that_is_no_more_are_left_out_of_replays() -> None:
    gone = replace(decision("a"), tags={"task": Tag("gone", "client", 1.0)})
    assert gone.profile is not None
    gone = replace(gone, profile=replace(gone.profile, task="gone"))
    found = traffic(gone, end("a", START + 1), decision("b"), end("b", START + 2))
    kept = known(found.arrivals(), YARD.fleet, YARD.policy)
    assert [(a.row, a.task) for a in kept] == [(0, "chat")]


def test_requests_that_are_outside_a_bound_by_now_are_left_out_of_replays() -> None:
    inside, outside = (
        decision(name, profile={"regions": (region,)})
        for name, region in (("a", "eu-west"), ("b", "us-east"))
    )
    found = traffic(inside, end("a", START + 1), outside, end("b", START + 2))
    fields = YARD.policy.model_dump() | {"default_tenant": {"bound": {"regions": ("eu-west",)}}}
    policy = Policy.model_validate(fields)
    setting = setting_of(found, YARD.fleet, policy)
    assert [a.request.constraints.regions for a in setting.arrivals if a.request] == [["eu-west"]]
    assert found.left_out == {"of a class, a model or a bound that is another by now": 1}
    options = compile_options(setting.fleet)
    ours = run_one("shunter", setting, options, shunter(setting, options))
    assert len(ours.run.outcomes) == 1


def test_files_that_cannot_be_read_or_written_are_told_before_evidence_is_read(
    tmp_path: Path,
) -> None:
    page = tmp_path / "gone" / "page.html"
    words = ["report", "savings", "--archive", str(tmp_path)]
    told = CliRunner().invoke(app, [*words, "--output", str(page)]).exception
    assert isinstance(told, UserError)
    assert f"{page}: can't be written: No such file" in str(told)
    told = CliRunner().invoke(app, [*words, "--fleet", str(page)]).exception
    assert isinstance(told, DeclarationError)
    assert f"{page}: can't be read" in str(told)


def test_a_page_that_the_disk_has_no_room_for_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told in the words of each command that writes a file."""
    given = [row(decision("plain")), row(end("plain", START + 2), 1)]

    class Trail:
        def each(self, _kind: str, take: Any) -> None:
            for each in given:
                take(each)

    monkeypatch.setattr("shunter.commands.report.open_trail", lambda *_: Trail())
    words = ["report", "savings", "--only", "all_premium", "--no-bound", "--output", "/dev/full"]
    told = CliRunner().invoke(app, words)
    assert isinstance(told.exception, UserError), told.output
    assert str(told.exception) == "/dev/full: can't be written: No space left on device"
