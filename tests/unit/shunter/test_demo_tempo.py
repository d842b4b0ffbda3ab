"""A demo sets its speed by what it measured, and starts its processes anew where it has to."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policies import compile_options
from shunter.demo import run as demo_run
from shunter.demo.installation import Plan
from shunter.demo.machine import USUAL, Measure, Tempo
from streams.config.declarations import load_fleet, load_policy
from topics import Settings


class Running:
    """What stands for a running system: it carries so many requests a second."""

    def __init__(self, run_dir: Path, per_s: float) -> None:
        self.run_dir, self.per_s = run_dir, per_s
        self.events: list[str] = []
        self.said: list[str] = []
        self.changed: list[Any] = []
        self.system = SimpleNamespace(start=self.start, stop=lambda: self.events.append("stop"))
        self.watch = SimpleNamespace(
            names=set(), live=SimpleNamespace(change=lambda *new: self.changed.append(new))
        )
        self.show = SimpleNamespace(say=self.said.append)

    def start(self, name: str, _command: Sequence[str], web_port: int) -> None:
        self.events.append(f"start {name} {web_port}")

    async def measure(self) -> Measure:
        self.events.append("measure")
        return Measure(240, 240 / self.per_s)

    async def open_lanes(self) -> None:
        self.events.append("open lanes")


async def tempo_of(tmp_path: Path, per_s: float, **options: Any) -> Any:
    running = Running(tmp_path, per_s)
    case = demo_run._prepare(Plan(**options))
    files = demo_run._declare(case, case.first_speed, tmp_path)
    found, speed, machine = await demo_run._set_tempo(
        case,
        Settings(**files),  # type: ignore[arg-type]
        running,  # type: ignore[arg-type]
        12345,
    )
    return SimpleNamespace(running=running, case=found, speed=speed, machine=machine)


async def test_a_machine_that_carries_the_usual_speed_goes_on_as_it_was_started(tmp_path: Path):
    found = await tempo_of(tmp_path, 2000.0)
    assert found.running.events == ["measure"]
    assert (found.speed, len(found.case.rows)) == (USUAL.speed, 2000)
    assert found.running.watch.names == set(found.case.requests)
    assert found.machine["per_s"] == pytest.approx(2000)
    (line,) = found.running.said
    assert "carries 2000 requests/s" in line


async def test_a_burst_says_more_than_the_trace_gets(tmp_path: Path):
    """Two cores of this rate kept 98.4 % of all requests at the usual tempo."""
    found = await tempo_of(tmp_path, 1115.0)
    assert Tempo(found.speed, len(found.case.rows) / 2000) != USUAL
    (line, *_) = found.running.said
    assert "carries 1115 requests/s" in line
    assert "of the trace's mixture it takes 301" in line


async def test_a_slower_one_gets_slower_devices_a_slower_policy_and_fewer_requests(tmp_path: Path):
    found = await tempo_of(tmp_path, 120.0)
    assert found.speed < USUAL.speed
    assert len(found.case.rows) == len(found.case.requests) < 2000
    assert found.running.watch.names == {row.id for row in found.case.rows}
    events = found.running.events
    assert events[:2] == ["measure", "stop"]
    assert events[2] == "start router 12345"
    assert "start cpu-eu 0" in events
    assert events[-1] == "open lanes"
    options = compile_options(load_fleet(tmp_path / "fleet.yaml"))
    assert {o.time_scale for each in options.by_pool.values() for o in each} == {found.speed}
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy == load_policy(None).faster(found.speed)
    assert [(o.version, p) for o, p in found.running.changed] == [(options.version, policy)]


async def test_a_speed_that_is_given_is_not_measured(tmp_path: Path):
    found = await tempo_of(tmp_path, 1.0, speed=7.0, requests=30)
    assert found.running.events == []
    assert (found.speed, len(found.case.rows), found.machine) == (7.0, 30, None)


async def test_the_number_of_requests_that_is_given_stays(tmp_path: Path):
    found = await tempo_of(tmp_path, 5.0, requests=300)
    assert len(found.case.rows) == 300
    assert found.speed < USUAL.speed
