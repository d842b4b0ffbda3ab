"""The story of a request as a person reads it."""

import io
from collections.abc import Sequence

import pytest
from client_commands import evidence
from rich.console import Console

from shunter.render.story import story
from topics import Evidence


def told(steps: Sequence[Evidence], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(story(steps))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


class TestStory:
    @pytest.mark.parametrize("width", [80, 120])
    def test_it_fits_the_terminal_and_loses_nothing(self, width: int) -> None:
        text = told(evidence(), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for part in (
            "held: waiting_is_cheapest",
            "output_length 100 (client, 0.70 sure)",
            "silicon-us us-east, llama-3.1-8b-fp4 fp4: region",
            "b-17, member 3 of 8",
            "12.250 s in llama/eu/8k; ended by full, 30.100 s before",
            "lpddr-eu: overloaded",
            "120 in (20 cached), 100 out",
            "router-0, from inference.requests/2@15",
            "policy p-12ab · fleet f-98ef",
        ):
            assert part in text, part

    def test_steps_stand_in_the_order_of_time_with_the_seconds_since_the_first(self) -> None:
        text = told(evidence()[::-1], 120)
        headings = [line.split() for line in text.splitlines() if " s  " in line and "+" in line]
        assert [(h[1], h[3].rstrip(":")) for h in headings] == [
            ("+0.000", "held"),
            ("+12.250", "released"),
            ("+13.000", "fell_back"),
            ("+19.000", "executed"),
        ]

    def test_the_chosen_candidate_is_marked_and_its_figures_are_shown(self) -> None:
        (chosen,) = [line for line in told(evidence(), 120).splitlines() if "→" in line]
        assert " ".join(chosen.split()) == (
            "→ hold lpddr-eu eu-west llama-3.1-8b-int8 int8 waiting is cheapest"
            " 0.0000123 12.500 20.000 0.991"
        )

    def test_what_was_promised_stands_above_what_was_got(self) -> None:
        executed = told(evidence()[-1:], 120).splitlines()
        rows = [line.split() for line in executed if line.strip().startswith(("promised", "got"))]
        assert rows == [
            ["promised", "0.0000123", "12.500", "20.000", "0.991", "50.0"],
            ["got", "0.0000119", "12.400", "19.000", "48.0"],
        ]

    def test_a_policy_that_changed_on_the_way_is_told_at_each_step(self) -> None:
        first, *_, last = evidence()
        newer = Evidence(
            **{name: getattr(last, name) for name in Evidence.__slots__}
            | {"policy_version": "p-newer"}
        )
        text = told([first, newer], 120)
        assert text.count("policy p-12ab") == 1
        assert text.count("policy p-newer") == 1

    def test_markup_in_a_request_is_shown_as_it_is(self) -> None:
        (step,) = evidence("[bold]r[/bold]")[-1:]
        assert "request [bold]r[/bold]" in told([step], 80)
