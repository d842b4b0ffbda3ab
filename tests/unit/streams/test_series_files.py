"""Files of series: what a fleet's file names stands in the declaration once it is read."""

from pathlib import Path

import pytest

from policies.config.schema import DeclarationError
from streams.config.declarations import load_fleet, packaged

PRICES = "at,value,other\n2024-01-01T00:00Z,4,1\n1704070800,2.5,2\n"


def fleet_file(folder: Path, series: str) -> Path:
    text = packaged("fleet.yaml").replace("pools:\n", f"series: {{spot: {series}}}\npools:\n", 1)
    path = folder / "fleet.yaml"
    path.write_text(
        text.replace("    device: maia-200\n", "    device: maia-200\n    tariff: spot\n")
    )
    return path


def test_a_file_beside_the_fleet_becomes_steps_that_its_version_tells(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text(PRICES)
    read = load_fleet(fleet_file(tmp_path, "{file: prices.csv}"))
    written = load_fleet(
        fleet_file(tmp_path, "{steps: [['2024-01-01T00:00Z', 4], ['2024-01-01T01:00Z', 2.5]]}")
    )
    assert read.series["spot"].steps == ((1704067200.0, 4.0), (1704070800.0, 2.5))
    assert read.version == written.version
    other = load_fleet(fleet_file(tmp_path, "{file: prices.csv, column: other}"))
    assert other.version != read.version


@pytest.mark.parametrize(
    ("series", "told"),
    [
        ("{steps: [[noon, 1]]}", "ISO 8601"),
        ("{file: missing.csv}", "can't be read"),
        ("{file: prices.csv, column: spot}", "no column spot"),
        ("{value: 1, timezone: Mars/Olympus}", "no time zone"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, series: str, told: str) -> None:
    (tmp_path / "prices.csv").write_text(PRICES)
    with pytest.raises(DeclarationError, match=told):
        load_fleet(fleet_file(tmp_path, series))
