"""Quotes in a backtest: what was kept and paid, and the errors that come of it."""

from dataclasses import replace
from math import exp, inf, log
from random import Random

import pytest
from stream_cases import START, Yard, make_profile

from policies.backtest.outcome import ReplayOutcome
from policies.backtest.quote_outcomes import Taken, ends_of, measured_errors, quote_scores
from policies.scoring.promises import times_for
from topics import Quoted

PROFILE = make_profile(Yard().policy)


def outcome(name: str, finished_s: float | None, cost_usd: float = 1e-6) -> ReplayOutcome:
    found = ReplayOutcome(0, replace(PROFILE, id=name), 10, 10)
    found.status = "expired" if finished_s is None else "completed"
    found.finished_s, found.cost_usd = finished_s, cost_usd
    return found


def taken(deadline: float, chance: float = 0.95, nano: int = 1000) -> Taken:
    return Taken(Quoted("q", nano, chance), "chat", "direct", START, 2.0, 8e-7, deadline)


def test_what_is_kept_is_what_was_answered_by_the_deadline_of_the_quote() -> None:
    outcomes = [outcome("a", START + 5), outcome("b", START + 5.1), outcome("c", None)]
    found = quote_scores(ends_of(outcomes, dict.fromkeys("abc", taken(START + 5))))
    assert found["by_chance"] == [{"chance": 0.95, "promises": 3, "kept": pytest.approx(1 / 3)}]


def test_what_failed_in_time_is_not_kept_and_tells_no_time() -> None:
    failed = outcome("a", START + 1)
    failed.status = "failed"
    (end,) = ends_of([failed], {"a": taken(START + 5)})
    assert (end.is_kept, end.error) == (False, inf)


def test_nobody_is_charged_more_than_was_quoted_and_the_rest_is_told() -> None:
    outcomes = [outcome("a", START + 1, 4e-7), outcome("b", START + 1, 5e-6), outcome("no", START)]
    found = quote_scores(ends_of(outcomes, dict.fromkeys("ab", taken(START + 5))))
    assert (found["quotes"], found["cost_more_than_quoted"]) == (2, 1)
    assert found["quoted_usd"] == pytest.approx(2e-6)
    assert found["charged_usd"] == pytest.approx(1.4e-6)
    assert found["cost_usd"] == pytest.approx(5.4e-6)
    # 400 nano-dollars of the first, and of the second 800 with its margin.
    assert found["charged_share_by_margin"]["1.0"] == pytest.approx((400 + 1600) / 5400)


@pytest.mark.slow
def test_errors_told_by_some_are_kept_by_others_as_they_say() -> None:
    drawn = Random(7)

    def run(names: range) -> list[ReplayOutcome]:
        return [outcome(str(n), START + 2.0 * drawn.lognormvariate(0.2, 0.6)) for n in names]

    first = run(range(4000))
    far = {o.profile.id: taken(START + 1e6) for o in first}
    points = measured_errors(ends_of(first, far), {})["chat"].direct
    for chance in (0.9, 0.95, 0.99):
        deadline = START + 2.0 * times_for(chance, points, 0.35)
        judged = run(range(8000))
        quotes = {o.profile.id: taken(deadline, chance) for o in judged}
        (row,) = quote_scores(ends_of(judged, quotes))["by_chance"]
        assert row["kept"] == pytest.approx(chance, abs=0.01)


def test_of_what_never_ended_only_is_known_that_it_took_longer() -> None:
    outcomes = [outcome(str(n), START + 2.0 if n < 900 else None) for n in range(1000)]
    quotes = {o.profile.id: taken(START + 9) for o in outcomes}
    points = dict(measured_errors(ends_of(outcomes, quotes), {})["any"].direct)
    assert points[0.8] == pytest.approx(0.0, abs=0.01)
    assert points[0.95] > points[0.8] + 0.1


def test_a_class_with_few_quotes_has_no_errors_of_its_own() -> None:
    outcomes = [outcome(str(n), START + 2.0 + n) for n in range(50)]
    quotes = {o.profile.id: taken(START + 99) for o in outcomes}
    found = measured_errors(ends_of(outcomes, quotes), {})
    assert set(found) == {"any"}
    # Nothing is said of what happens less often than one in fifty.
    assert found["any"].direct[-1][0] == 0.98


@pytest.mark.parametrize(("count", "tells"), [(200, True), (199, False)])
def test_a_class_has_errors_of_its_own_once_it_can_tell_the_rarest(count: int, tells: bool) -> None:
    outcomes = [outcome(str(n), START + 2.0 + n) for n in range(count)]
    quotes = {o.profile.id: taken(START + 1e6) for o in outcomes}
    found = measured_errors(ends_of(outcomes, quotes), {})
    assert ("chat" in found) == tells
    assert found["any"].direct[-1][0] == 0.995


def test_what_was_promised_a_chance_tells_its_error_and_the_others_stand_between() -> None:
    names = [str(n) for n in range(400)]
    # What was promised 99 % has more time, and takes twice as long.
    late = {name: int(name) % 2 == 0 for name in names}
    outcomes = [outcome(n, START + (1 + late[n]) * (2.0 + int(n) / 400)) for n in names]
    quotes = {n: taken(START + 99, 0.99 if late[n] else 0.95) for n in names}
    points = dict(measured_errors(ends_of(outcomes, quotes), {})["chat"].direct)
    assert exp(points[0.95]) == pytest.approx(1.0 + 0.95 / 2, abs=0.01)
    assert exp(points[0.99]) == pytest.approx(2.0 + 0.99, abs=0.02)
    assert points[0.93] < points[0.95] < points[0.97] < points[0.99] < points[0.995]


def test_errors_go_a_part_of_the_way_to_what_was_found() -> None:
    names = [str(n) for n in range(400)]
    quick = [outcome(n, START + 2.0 + int(n) / 400) for n in names]
    slow = [outcome(n, START + 4.0 + int(n) / 200) for n in names]
    quotes = dict.fromkeys(names, taken(START + 99))
    before = measured_errors(ends_of(quick, quotes), {})
    found = measured_errors(ends_of(slow, quotes), before, 0.25)
    moved = [b[1] - a[1] for a, b in zip(before["chat"].direct, found["chat"].direct, strict=True)]
    assert moved == pytest.approx([log(2.0) / 4] * len(moved), abs=0.01)
