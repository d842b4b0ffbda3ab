"""The judge of an SLO."""

import pytest

from policies.scoring.slo import kept


@pytest.mark.parametrize(("over_s", "is_kept"), [(0.0, True), (0.001, False)])
@pytest.mark.parametrize("name", ["ttft", "tpot"])
def test_a_latency_may_be_its_limit_and_no_more(name: str, over_s: float, *, is_kept: bool) -> None:
    measured = {"ttft_s": 0.5, "tpot_s": 0.05}
    limits = {f"{each[:4]}_max_s": value for each, value in measured.items()}
    found = kept(
        in_time=True, **(measured | {f"{name}_s": measured[f"{name}_s"] + over_s}), **limits
    )
    assert (found[name], found["all"]) == (is_kept, is_kept)
