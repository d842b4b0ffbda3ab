"""A worker that is not what the fleet declares of its pool gets nothing, and its pool neither."""

import pytest
from decisions import decide_in
from policy_cases import FLEET, NOW, a_situation, bulk, profile, some_options, status

from policies import FleetView
from policies.fleet_state.misfits import GRACE_S
from topics import PoolStatus, VariantStatus

OPTIONS = some_options()


def of(precision: str = "bf16", variant: str = "llama-bf16") -> dict[str, VariantStatus]:
    return {variant: VariantStatus(precision=precision)}


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (status("premium", region="us-east"), "region"),
        (status("premium", device="slow"), "device"),
        (status("premium", variants=of("int8")), "precision"),
        (status("premium", variants=of()), None),
        (status("premium", variants=of("fp4", "unheard-of")), None),
        (status("premium", pool_version=OPTIONS.pool_versions["premium"]), None),
        (status("premium", fleet_version="older"), None),
        (status("premium", device="slow", state="draining"), None),
        (status("stranger", device="slow"), None),
    ],
)
def test_what_is_no_fit(wrong: PoolStatus, what: str | None) -> None:
    view = FleetView(OPTIONS)
    view.report(wrong)
    assert view.refused == ({} if what is None else {("premium", what): 1})
    assert [each.what for each in view.misfits.values()] == ([] if what is None else [what])


def test_a_pool_gets_nothing_while_one_of_its_workers_is_no_fit() -> None:
    """They share its lanes: what is meant for the other one would come to this one."""
    where = a_situation()
    assert decide_in(profile(regions=("eu-west",)), where, NOW).action == "place"
    where.view.report(status("premium", instance="1", region="us-east"))
    decision = decide_in(profile(regions=("eu-west",)), where, NOW)
    assert (decision.action, decision.reason) == ("hold", "worker_misfit")
    assert {c.refused for c in decision.candidates if c.pool == "premium"} == {"worker_misfit"}
    assert decide_in(bulk(), where, NOW).candidates[0].pool != "premium"
    assert not where.view.reports("premium")
    where.view.report(status("premium", instance="1"))
    assert decide_in(profile(regions=("eu-west",)), where, NOW).action == "place"
    assert where.view.refused == {("premium", "region"): 1}


def test_one_that_is_gone_is_forgotten() -> None:
    where = a_situation()
    where.view.report(status("premium", instance="1", region="us-east"))
    where.view.report(status("premium", at=NOW + 60))
    where.view.prune(NOW + 60)
    assert not where.view.misfits
    assert where.view.load("premium").workers == 1


def test_another_version_of_the_pool_counts_when_it_lasts() -> None:
    """A change of the fleet comes to a router and to a worker at different moments."""
    view = FleetView(OPTIONS)
    view.report(status("premium", pool_version="other"))
    view.report(status("premium", pool_version="other", at=NOW + GRACE_S - 1))
    assert not view.misfits
    view.report(status("premium", pool_version="other", at=NOW + GRACE_S))
    assert view.refused == {("premium", "fleet_version"): 1}
    view.report(status("premium", pool_version=OPTIONS.pool_versions["premium"], at=NOW + 20))
    assert not view.misfits
    view.report(status("premium", pool_version="other", at=NOW + 30))
    assert not view.misfits
    # One that was gone meanwhile may have come back before the change reached it.
    view.prune(NOW + 90)
    view.report(status("premium", pool_version="other", at=NOW + 90))
    assert not view.misfits


def test_a_worker_is_judged_anew_by_another_fleet() -> None:
    moved = some_options(
        FLEET.replace("count: 2\n    region: eu-west", "count: 2\n    region: mars", 1)
    )
    view = FleetView(OPTIONS)
    view.report(status("premium"))
    assert [each.what for each in view.under(moved).misfits.values()] == ["region"]
    assert view.under(moved).load("premium").is_misfit
    assert not view.under(moved).under(OPTIONS).load("premium").is_misfit


def test_a_pool_version_is_of_its_own_hardware_and_not_of_its_backend_or_of_others() -> None:
    def version(text: str, pool: str = "premium") -> str:
        return some_options(text).pool_versions[pool]

    assert version(FLEET) == version(FLEET.replace("usd_per_hour: 0.4", "usd_per_hour: 0.5"))
    assert version(FLEET) != version(FLEET.replace("usd_per_hour: 4.0", "usd_per_hour: 5.0"))
    slower = FLEET.replace("    lanes: [batch]\n", "    backend: {type: simulated, seed: 4}\n")
    assert version(slower, "board") != version(FLEET, "board")
    same = FLEET.replace(
        "    lanes: [batch]\n", "    lanes: [batch]\n    backend: {type: simulated, seed: 4}\n"
    )
    assert version(same, "board") == version(FLEET, "board")
