"""A batch that is ready fills the places beside what runs, or waits for them within its time."""

from dataclasses import replace

import pytest
from policy_cases import NOW, POLICY, a_situation, bulk, profile, some_options, status
from release_cases import batch, target_of
from window_cases import MARGIN_S, RETRY_S, SERVICE_S, always, filled, releases, run

from policies import Windows
from policies.fleet_state.candidate_load import BUSY_ANYWAY, PoolLoad, standing_of
from policies.scoring.estimate import estimate, room
from topics import VariantStatus

BOARD = some_options().of("board", "llama-int8")
ROOM_WAIT_S = 120.0
PATIENT = POLICY.replace("margin_s: 1.0", "margin_s: 1.0, room_wait_s: 120")


def load(running: int, **others: int) -> PoolLoad:
    return PoolLoad(workers=1, running_by_variant={BOARD.variant: running, **others})


def cost_usd(pool: PoolLoad, *, members: int = 1, wait_s: float = 0.0) -> float:
    standing = standing_of(BOARD, pool)
    found = estimate(bulk(), standing, transport_s=0.0, members=members, wait_s=wait_s)
    return found.cost_usd


@pytest.mark.parametrize(
    ("running", "free"), [(0, 64), (1, 47), (40, 8), (48, 0), (49, 47), (96, 0), (100, 44)]
)
def test_room_is_what_is_left_of_the_replicas_that_run(running: int, free: int) -> None:
    assert BOARD.max_batch == 64
    assert room(standing_of(BOARD, load(running))) == free


def test_joining_is_cheaper_than_waking_and_a_mixed_device_lies_between() -> None:
    woken, mixed, joined = (cost_usd(pool) for pool in (load(0), load(0, other=3), load(5)))
    assert joined < mixed < woken
    prefill_usd = BOARD.roofline.prefill_s(bulk().input_tokens) * BOARD.usd_per_s
    assert mixed - prefill_usd == pytest.approx(BUSY_ANYWAY * (woken - prefill_usd))


def test_a_place_in_a_fuller_pool_is_dearer_unless_nobody_else_wants_it() -> None:
    assert cost_usd(load(40)) < cost_usd(load(100))
    assert cost_usd(load(100), wait_s=5.0) < cost_usd(load(40))


def test_the_members_of_a_batch_share_the_waking() -> None:
    alone, one_of_ten = (cost_usd(load(0), members=n) for n in (1, 10))
    assert one_of_ten < 0.5 * alone


def test_a_batch_is_no_larger_than_the_room_and_says_when_there_is_none() -> None:
    where = a_situation("board", policy=PATIENT)
    where.view.report(status("board", variants={BOARD.variant: VariantStatus(running=30)}))
    found = target_of(batch(60), where)
    assert (found.members_max, found.is_crowded) == (18, False)
    where.view.report(status("board", variants={BOARD.variant: VariantStatus(running=45)}))
    assert target_of(batch(60), where).is_crowded


def test_without_a_wait_for_room_a_batch_takes_what_the_device_has() -> None:
    where = a_situation("board")
    where.view.report(status("board", variants={BOARD.variant: VariantStatus(running=45)}))
    found = target_of(batch(60), where)
    assert (found.members_max, found.is_crowded) == (32, False)


def test_what_goes_alone_needs_no_room() -> None:
    where = a_situation("premium", policy=PATIENT)
    where.view.report(status("premium", variants={"llama-fp8": VariantStatus(running=24)}))
    held = [*batch(1)]
    direct = held[0].__class__(profile(), "direct", NOW, 0)
    assert not target_of([direct], where).is_crowded


SERVES_DIRECT = VariantStatus(running=3, ttft_error=(1.0, 1.1, 1.2))
BATCHES_ALONE = VariantStatus(running=3)


@pytest.mark.parametrize(
    ("backlog_s", "serves", "waits"),
    [
        (0.3, SERVES_DIRECT, True),
        (0.2, SERVES_DIRECT, False),
        (0.3, BATCHES_ALONE, False),
    ],
)
def test_a_batch_waits_where_prompts_of_a_pool_that_serves_direct_requests_wait(
    backlog_s: float, serves: VariantStatus, waits: bool
) -> None:
    told = status("board", backlog_s=backlog_s, variants={BOARD.variant: serves})
    where = a_situation("board", policy=PATIENT.replace("margin_s", "backlog_s_max: 0.2, margin_s"))
    where.view.report(told)
    assert target_of(batch(20), where).is_crowded is waits
    without = a_situation("board", policy=PATIENT)
    without.view.report(told)
    assert not target_of(batch(20), without).is_crowded


@pytest.mark.parametrize(
    ("backlog_s", "idle", "urgent", "waits"),
    [
        (0.3, (0, 0), (1, 0), True),
        (0.3, (0, 0), (0, 4), True),
        (0.2, (0, 0), (1, 0), False),
        (0.3, (0, 1), (1, 0), False),
        (0.3, (0, 0), (0, 0), False),
    ],
)
def test_a_batch_waits_where_direct_requests_fill_all_replicas(
    backlog_s: float, idle: tuple[int, int], urgent: tuple[int, int], *, waits: bool
) -> None:
    where = a_situation("board", policy=PATIENT.replace("margin_s", "backlog_s_max: 0.2, margin_s"))
    for instance, serves in (("0", SERVES_DIRECT), ("1", BATCHES_ALONE)):
        at = int(instance)
        # What was learned of promises tells nothing beyond what the workers tell.
        told = {"backlog_s": backlog_s, "variants": {BOARD.variant: serves}}
        told |= {"idle_replicas": idle[at], "urgent": urgent[at]}
        where.view.report(status("board", instance=instance, **told))
    assert target_of(batch(20), where).is_crowded is waits


def test_a_worker_that_tells_no_idle_replicas_is_judged_by_what_came_near_its_slos() -> None:
    where = a_situation("board", policy=PATIENT.replace("margin_s", "backlog_s_max: 0.2, margin_s"))
    told = {"backlog_s": 0.3, "urgent": 1}
    where.view.report(status("board", instance="0", idle_replicas=0, **told))
    assert target_of(batch(20), where).is_crowded
    where.view.report(status("board", instance="1", **told))
    assert not target_of(batch(20), where).is_crowded
    near = {BOARD.variant: SERVES_DIRECT}
    where.view.report(status("board", instance="1", variants=near, **told))
    assert target_of(batch(20), where).is_crowded


def crowded_windows(room_wait_s: float = ROOM_WAIT_S) -> Windows:
    limits = {"members_max": 32, "margin_s": MARGIN_S, "retry_s": RETRY_S}
    return filled(8, into=Windows(**limits, room_wait_s=room_wait_s))  # type: ignore[arg-type]


def test_a_full_batch_waits_for_room_and_goes_when_there_is_some() -> None:
    held = crowded_windows()
    assert run(held, NOW, always(is_crowded=True)) == []
    assert held.next_due_at() == NOW + RETRY_S
    (release,) = releases(run(held, NOW + RETRY_S, always()))
    assert release.reason == "full"


def test_it_waits_no_longer_than_the_policy_allows() -> None:
    held = crowded_windows()
    assert run(held, NOW + ROOM_WAIT_S - 1, always(is_crowded=True)) == []
    assert releases(run(held, NOW + ROOM_WAIT_S, always(is_crowded=True)))


def test_without_a_wait_for_room_nothing_changes() -> None:
    assert releases(run(crowded_windows(0.0), NOW, always(is_crowded=True)))


@pytest.mark.parametrize("replicas", [1, 3])
def test_it_does_not_wait_where_what_waits_would_be_late_batch_by_batch(replicas: int) -> None:
    limits = {"members_max": 32, "margin_s": MARGIN_S, "retry_s": RETRY_S}
    batches = 4
    # The first round has a batch for each replica.
    time_s = (1 + (batches - 1) / replicas) * SERVICE_S + MARGIN_S
    crowded = always(is_crowded=True, option=replace(BOARD, replicas=replicas))

    def ends(left_s: float) -> int:
        held = Windows(**limits, room_wait_s=1e6)  # type: ignore[arg-type]
        filled(8 * batches, into=held, deadline=NOW + left_s)
        return len(run(held, NOW, crowded))

    assert ends(time_s + 1) == 0
    assert ends(time_s - 1) > 0
