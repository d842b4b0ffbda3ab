"""Series: values by time as they are declared, and their means, held against sums by hand."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import FLEET, PROPERTY
from pydantic import ValidationError

from policies import compile_options, parse_fleet
from policies.config.curves import mean
from policies.config.schema import DeclarationError
from policies.config.series import Series
from streams.config.series_files import completing

NIGHT = {"value": 3, "windows": [{"days": ["fri"], "from": "22:00", "to": "06:00", "value": 1}]}


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_hours_that_end_before_they_begin_end_on_the_next_day() -> None:
    curve = Series.model_validate(NIGHT).curve
    # The fifth of January 2024 is a Friday.
    assert [curve.at(at(f"2024-01-05T{clock}")) for clock in ("21:59", "22:00", "23:00")] == [
        3,
        1,
        1,
    ]
    assert [curve.at(at(f"2024-01-06T{clock}")) for clock in ("05:59", "06:00")] == [1, 3]
    assert curve.at(at("2024-01-06T22:30")) == 3
    assert curve.next_change(at("2024-01-05T12:00")) == at("2024-01-05T22:00")
    assert curve.next_change(at("2024-01-05T22:00")) == at("2024-01-06T06:00")


@PROPERTY
@given(
    st.dictionaries(st.integers(0, 3000), st.integers(0, 50), min_size=1),
    st.integers(-100, 3100),
    st.integers(1, 2000),
)
def test_a_mean_is_that_of_each_second(declared: dict[int, int], begin: int, length: int) -> None:
    steps = sorted(declared.items())
    curve = Series(steps=tuple((float(s), float(v)) for s, v in steps)).curve

    def value(second: int) -> int:
        before = [v for s, v in steps if s <= second]
        return before[-1] if before else steps[0][1]

    by_hand = sum(map(value, range(begin, begin + length))) / length
    assert mean(curve, begin, begin + length) == pytest.approx(by_hand, rel=1e-9, abs=1e-9)
    for second in (begin, begin + length):
        assert curve.at(second) == value(second)


def test_what_is_not_known_yet_stays_as_it_is_then() -> None:
    steps = ((0.0, 5.0), (100.0, 1.0), (200.0, 9.0))
    curve = Series(steps=steps, known_ahead_s=60).curve
    assert mean(curve, 150, 150, now=10) == 5
    assert mean(curve, 150, 150, now=50) == 1
    assert mean(curve, 150, 250, now=150) == 5
    assert mean(curve, 150, 250) == 5
    assert mean(curve, 190, 290, now=100) == 1
    assert mean(curve, 150, 150) == 1


def test_a_zone_changes_its_clocks_whatever_the_machine_knows_later() -> None:
    mapping = {"series": {"day": NIGHT | {"timezone": "Europe/Berlin"}}}
    mapping["series"]["day"]["windows"] = [{"from": "08:00", "to": "20:00", "value": 1}]
    completing("fleet.yaml", None)(mapping)
    series = Series.model_validate(mapping["series"]["day"])
    zone = ZoneInfo("Europe/Berlin")
    moved = series.seen_from(at("2024-03-30T00:00")).curve
    for hour in range(24 * 9):
        time = at("2024-03-26T00:30") + 3600 * hour
        local = datetime.fromtimestamp(time, zone)
        wanted = 1 if 8 <= local.hour < 20 else 3
        assert series.curve.at(time) == wanted, local
        assert moved.at(time - at("2024-03-30T00:00")) == wanted, local


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({}, "exactly one"),
        ({"value": 1, "steps": [[0, 1]]}, "exactly one"),
        ({"steps": [[5, 1], [5, 2]]}, "must be after"),
        ({"steps": [["noon", 1]]}, "valid number"),
        ({"value": 1, "timezone": "Europe/Berlin"}, "offsets"),
        ({"file": "prices.csv"}, "only the reader"),
        ({"steps": [[0, 1]], "windows": NIGHT["windows"]}, "windows need"),
    ],
)
def test_a_series_that_says_nothing_or_two_things_is_refused(
    declared: dict[str, object], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        Series.model_validate(declared)


def with_prices(added: str, fleet: str = FLEET) -> str:
    return fleet.replace("pools:\n", f"{added}\npools:\n", 1)


def test_a_fleet_without_prices_by_time_keeps_its_version() -> None:
    plain = parse_fleet(FLEET, "f")
    assert plain.version == parse_fleet(with_prices("series: {}\nregions: {}"), "f").version
    assert not any(o.moves for options in compile_options(plain).by_pool.values() for o in options)


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("regions: {eu-west: {usd_per_kwh: night}}", "unknown series"),
        ("regions: {eu-west: {usd_per_kwh: 0.2}}", "declares no power_w"),
    ],
)
def test_prices_that_cannot_be_counted_are_refused(added: str, told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        parse_fleet(with_prices(added), "f")


def test_a_published_fleet_reads_back_with_its_version() -> None:
    text = with_prices(
        "series: {night: {value: 3, windows: [{from: '22:00', to: '06:00', value: 1}]}}"
    )
    fleet = parse_fleet(
        text.replace("    device: slow\n", "    device: slow\n    tariff: night\n"), "f"
    )
    again = parse_fleet(fleet.model_dump_json(by_alias=True), "published")
    assert again == fleet
    assert again.version == fleet.version


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("at,value\n", "has no rows"),
        ("at,price\n0,1\n", "has no column value"),
        ("at,value\n0,1\n5\n", "row 1: at is '5' and value None: give a time and a number"),
        ("at,value\n0,\n", "row 0: at is '0' and value ''"),
        ("at,value\nnoon,1\n", "row 0: at is 'noon' and value '1'"),
        ("at,value\n0,1\n5,1\n5,2\n", "row 2: its time is not after that of the row above"),
    ],
)
def test_a_file_of_prices_that_cannot_be_read_is_named_with_its_row(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "spot.csv").write_text(text)
    with pytest.raises(DeclarationError, match=r"f: series\.spot\.file: spot\.csv: ") as refused:
        completing("f", tmp_path)({"series": {"spot": {"file": "spot.csv"}}})
    assert told in str(refused.value)


def test_a_file_of_prices_may_be_a_spreadsheet_s(tmp_path: Path) -> None:
    text = "\ufeffat,value\r\n2024-03-01T00:00Z,1\r\n2024-03-01T01:00Z,2.5\r\n"
    (tmp_path / "spot.csv").write_text(text, newline="")
    mapping: dict[str, Any] = {"series": {"spot": {"file": "spot.csv"}}}
    completing("f", tmp_path)(mapping)
    begin = at("2024-03-01T00:00")
    assert mapping["series"]["spot"]["steps"] == [[begin, 1.0], [begin + 3600, 2.5]]


@pytest.mark.parametrize(
    "free",
    [
        "{value: 0}",
        "{value: 2, windows: [{from: '22:00', to: '06:00', value: 0}]}",
        "{steps: [[0, 3], [9, 0]]}",
    ],
)
def test_a_device_hour_is_never_for_nothing(free: str) -> None:
    """By its price an offer tells the device time, and so the energy, that it takes."""
    with_tariff = FLEET.replace("    device: slow\n", "    device: slow\n    tariff: free\n")
    with pytest.raises(DeclarationError, match=r"tariff: 'free': has a value of 0: must be"):
        parse_fleet(with_prices(f"series: {{free: {free}}}", with_tariff), "f")
    assert parse_fleet(with_prices(f"series: {{free: {free}}}"), "f")
    # What it draws costs something at any time.
    powered = with_tariff.replace(": {kind:", ": {power_w: 300, kind:")
    paid = f"series: {{free: {free}}}\nregions: {{eu-west: {{usd_per_kwh: 0.1}}}}"
    assert parse_fleet(with_prices(paid, powered), "f")


@PROPERTY
@given(st.lists(st.floats(0, 9), min_size=1, max_size=4), st.floats(0, 9))
def test_the_least_of_a_series_is_its_curve_s(values: list[float], usual: float) -> None:
    steps = Series(steps=tuple((float(at), value) for at, value in enumerate(values)))
    assert steps.least == min(map(steps.curve.at, range(len(values))))
    windows = [
        {"from": f"0{2 * at}:00", "to": f"0{2 * at + 1}:00", "value": value}
        for at, value in enumerate(values)
    ]
    week = Series.model_validate({"value": usual, "windows": windows})
    assert week.least == min(week.curve.at(3600.0 * hour) for hour in range(24))
