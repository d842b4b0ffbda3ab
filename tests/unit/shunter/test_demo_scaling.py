"""A demo's declarations: those packaged, faster."""

from pathlib import Path

import pytest

from policies import compile_options
from shunter.demo.scaling import fleet_text, policy_text
from streams.config.declarations import load_fleet, load_policy

SPEED = 4.0


def test_the_fleet_is_the_same_but_for_the_pace_of_its_devices(tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet_text(load_fleet(None), SPEED))
    scaled, packaged = load_fleet(path), load_fleet(None)
    assert scaled.devices == packaged.devices
    assert scaled.models == packaged.models
    for name, pool in packaged.pools.items():
        assert scaled.pools[name].model_copy(update={"backend": pool.backend}) == pool
    for options in compile_options(scaled).by_pool.values():
        assert {option.time_scale for option in options} == {SPEED}


def test_the_policy_wants_everything_in_a_fraction_of_the_time(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text(load_policy(None), SPEED))
    scaled, packaged = load_policy(path), load_policy(None)
    assert scaled == packaged.faster(SPEED)
    chat, before = scaled.classes["chat"], packaged.classes["chat"]
    assert before.ttft_ms is not None
    assert chat.ttft_ms == pytest.approx(before.ttft_ms / SPEED)
    assert chat.deadline_s == pytest.approx(before.deadline_s / SPEED)
    assert scaled.data_classes == packaged.data_classes
